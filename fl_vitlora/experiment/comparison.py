"""Runs a grid of experiments: every cell with every seed, one run after the other.

A grid is a comparison, and a cell is one combination of its settings. Ray is started once for all
runs. A grid folder contains a run folder for each run. A run is recognised by its configuration,
not by the name of its folder. Therefore an interrupted grid continues where it stopped. If cells or
seeds are added to a grid, only the new runs are executed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.config.grid import Cell, Grid, to_tree
from fl_vitlora.config.grid_labels import folder_name
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.held_folder import hold_folder, store
from fl_vitlora.experiment.known_runs import KnownRuns, as_it_runs
from fl_vitlora.experiment.runner import PausedError, run
from fl_vitlora.experiment.shard_reuse import KEPT
from fl_vitlora.experiment.starting import note_other_start, with_start
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.reporting.comparison_tables import Report, report, write_plots, write_tables
from fl_vitlora.reporting.grid_folder import GRID
from fl_vitlora.reporting.run_folder import (
    read_result,
    with_ring_of,
)
from fl_vitlora.reporting.statistics import Record
from fl_vitlora.storage.files import Hold


def default_folder() -> Path:
    """Returns the path of a new grid folder, whose name contains the present time."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-comparison"


def prepare_folder(folder: Path, grid: Grid) -> Hold:
    """Makes a grid folder or opens an existing grid folder, and stores the grid in the folder.

    Args:
        folder: The grid folder.
        grid: The grid (the comparison), which is stored in the folder.

    Returns:
        A lock. Until the lock is closed, no other process can use the folder.

    Raises:
        UserError: If the folder contains files but no grid, cannot be made, or is locked by another
            process.
    """
    if folder.exists() and not is_grid_folder(folder):
        raise UserError(
            f"{folder} already exists and is not a folder of a comparison; choose a new folder: "
            "--out FOLDER"
        )
    hold = hold_folder(folder, "grid folder", "comparison")
    with ExitStack() as undo:
        undo.enter_context(hold)
        store(folder / GRID, to_tree(grid), "grid folder")
        undo.pop_all()
    return hold


def is_grid_folder(folder: Path) -> bool:
    """Returns True if a folder has the file of a grid, or if it contains only runs."""
    if not folder.is_dir():
        return False
    whole = (folder / GRID).is_file()
    parts = (part for part in folder.iterdir() if part.name != KEPT)
    return whole or all(any(part.glob("**/config.yaml")) for part in parts)


def compare(
    grid: Grid, folder: Path, load_strategy: LoadStrategy, watch: Watch | None = None
) -> Iterator[Record]:
    """Runs the unfinished runs of a grid, and updates the tables of the grid after each run.

    Args:
        grid: The comparison whose runs are executed.
        folder: The grid folder, made by `prepare_folder`.
        load_strategy: A function that makes the strategy of an experiment.
        watch: The callbacks of the program that started the comparison.

    Yields:
        The record of each run, in order, when the run has ended. If a run cannot start or fails,
        its record has the reason instead of a result, and the next run starts.

    Raises:
        PausedError: If the caller set `watch.pause` before the last run had ended.
    """
    watch = watch or Watch()
    known, records = KnownRuns.of(folder, watch.note, may_stop=watch.may_stop), list[Record]()
    starts, reads = known.starts, dict[str, str]()
    with Engine(verbose=watch.verbose) as engine:
        for number, (cell, planned) in enumerate(grid.runs, start=1):
            execute = Execute(
                load_strategy=load_strategy,
                watch=watch,
                engine=engine,
                typed=cell.typed,
                number=number,
                total=len(grid.runs),
            )
            config = with_ring_of(planned, starts)
            config = as_it_runs(config, load_strategy, folder, cell.typed, known.opened)
            note_other_start(cell.name, config, reads, watch.note)
            place = known.finished_run(config)
            record = (
                _attempt(cell, config, folder, known.interrupted_run(config), execute)
                if place is None
                else _read(cell, config, place)
            )
            if record.failed:
                engine.stop()  # the next run starts with a fresh Ray
            if record.folder is not None:
                known.finished.append((config, record.folder))
            records.append(record)
            write_tables(folder, tell(grid, records))
            yield record
    write_plots(folder, tell(grid, records))


@dataclass(frozen=True, kw_only=True)
class Execute:
    """A function object that runs one experiment of a grid, in the folder of the setting `out`.

    Attributes:
        load_strategy: A function that makes the strategy of an experiment.
        watch: The callbacks of the program that started the comparison.
        engine: The object that keeps Ray running between the runs.
        typed: The dotted paths of the settings that the user has set; see `elsewhere.fitted`.
        number: The number of the run in the grid, from 1.
        total: The number of runs in the grid.
    """

    load_strategy: LoadStrategy
    watch: Watch
    engine: Engine
    typed: Collection[str]
    number: int
    total: int

    def __call__(self, config: Config, *, resume: bool) -> Line:
        """Runs the experiment, and returns the result of the run.

        Args:
            config: The configuration of the experiment.
            resume: True to resume an interrupted run in the folder `out`.

        Raises:
            PausedError: If the caller set `watch.pause`.
        """
        self.watch.training.clear()  # a signal before round 1 ends the program at once
        self.watch.stop.clear()  # this signal has ended the previous run
        if self.watch.pause.is_set():
            raise PausedError(f"after run {self.number - 1} of {self.total}")
        if not resume:
            config = with_start(config, self.load_strategy)
        strategy = self.load_strategy(config)
        self.watch.begin(config)
        try:
            return run(
                config, strategy, self.watch, engine=self.engine, resume=resume, typed=self.typed
            )[0]
        except PausedError as pause:
            raise PausedError(f"{pause}, run {self.number} of {self.total}") from None


def tell(grid: Grid, records: list[Record]) -> Report:
    """Returns the content of a grid's tables: all runs, means over seeds, and differences."""
    return report(grid.title, records, grid.baselines)


def _attempt(
    cell: Cell, config: Config, folder: Path, interrupted: Path | None, execute: Execute
) -> Record:
    """Runs one experiment and returns its record; if the run fails, the record has the reason.

    Args:
        cell: The combination of settings to which the run belongs.
        config: The configuration of the experiment.
        folder: The grid folder.
        interrupted: The folder of an interrupted run to resume; None for a new run.
        execute: The function that runs the experiment.
    """
    place = interrupted or _unused(folder / folder_name(cell.labels, config.seed))
    record = Record(labels=cell.labels, seed=config.seed)
    try:
        result = execute(dataclasses.replace(config, out=str(place)), resume=bool(interrupted))
    except UserError as error:
        return dataclasses.replace(record, problem=_line("refused", error))
    except RuntimeError as error:
        return dataclasses.replace(record, problem=_line("failed", error), failed=True)
    return dataclasses.replace(record, result=result, folder=place)


def _read(cell: Cell, config: Config, path: Path) -> Record:
    """Returns the record of a run that was already finished when the comparison started."""
    return Record(labels=cell.labels, seed=config.seed, result=read_result(path), folder=path)


def _unused(path: Path) -> Path:
    """Returns a path that does not exist yet, so that no other run's folder is changed."""
    names = (path if not i else path.with_name(f"{path.name}-again{i}") for i in range(1_000_000))
    return next(name for name in names if not name.exists())


def _line(what: str, error: Exception) -> str:
    return f"{what}: {' '.join(str(error).split())}"
