"""Runs a grid: every cell with every seed, one after the other, over one Ray.

A grid folder holds a run folder for each run. What is done is known by what it is, not by its name:
a folder that has a result, and whose configuration is that of the run, is the run. So a grid that
was broken off goes on where it stopped, and one that is asked for more runs what is new.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from fl_vitlora.checkpoints.logbook import lacks_checkpoints
from fl_vitlora.config import Config
from fl_vitlora.config.grid import Cell, Grid, to_tree
from fl_vitlora.config.grid_labels import folder_name
from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.encryption.keys import key_id, open_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import shards_of, storage_keys
from fl_vitlora.experiment.runner import PausedError, run
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.flower.strategies.identity import told
from fl_vitlora.reporting.comparison_tables import Report, report, write_plots, write_tables
from fl_vitlora.reporting.run_folder import (
    CONFIG,
    RESULT,
    begun_in,
    find_run,
    has_current_form,
    read_result,
    with_ring_of,
)
from fl_vitlora.reporting.statistics import Record
from fl_vitlora.storage.files import (
    HeldError,
    Hold,
    WriteError,
    make_folder,
    write_atomically,
    writing,
)

GRID = "grid.yaml"


class Execute(Protocol):
    """Runs an experiment in the folder that its `out` names."""

    def __call__(self, config: Config, *, resume: bool) -> Line:
        """Returns the result; a run that is resumed goes on in its folder."""
        ...


def default_folder() -> Path:
    """Names a new grid folder after its time."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-comparison"


def prepare_folder(folder: Path, grid: Grid) -> Hold:
    """Makes a grid folder, or takes up one that is there, and writes down what is asked for.

    Returns:
        What keeps other processes off the folder until it is closed.

    Raises:
        UserError: When it holds anything but a grid, cannot be made, or another process is at it.
    """
    if folder.exists() and not is_grid_folder(folder):
        raise UserError(f"{folder} holds something that is no grid; choose a new one: --out FOLDER")
    with ExitStack() as undo:
        try:
            make_folder(folder)
            with writing(folder):
                hold = undo.enter_context(Hold(folder))
            write_atomically(folder / GRID, write_yaml(to_tree(grid)))
        except WriteError as error:
            raise UserError(f"grid folder {error}; choose another one: --out FOLDER") from None
        except HeldError:
            raise UserError(
                f"grid folder {folder}: another process is at this comparison; wait for its end"
            ) from None
        undo.pop_all()
    return hold


def is_grid_folder(folder: Path) -> bool:
    """Tells a folder of a grid, or of nothing but runs, from any other."""
    if not folder.is_dir():
        return False
    whole = (folder / GRID).is_file()
    return whole or all(any(part.glob("**/config.yaml")) for part in folder.iterdir())


def compare(
    grid: Grid, folder: Path, load_strategy: LoadStrategy, watch: Watch | None = None
) -> Iterator[Record]:
    """Runs all of a grid that is not done yet, and keeps its tables up to date.

    Args:
        grid: The grid to run.
        folder: The folder of the comparison; see `prepare_folder`.
        load_strategy: Makes the strategy of an experiment.
        watch: The callbacks of whoever started the comparison.

    Yields:
        Each run when it has ended, or is found done. A run that is refused or fails has no result
        but says why, and the next one starts.

    Raises:
        PausedError: When the watch told it to pause, and a run did so or was still to be started.
    """
    watch = watch or Watch()
    done = runs_in(folder, finished=True)
    broken_off = runs_in(folder, finished=False)
    starts = [begun_in(place) for _, place in (*done, *broken_off)]
    records: list[Record] = []
    with Engine(verbose=watch.verbose) as engine:

        def execute(config: Config, *, resume: bool) -> Line:
            watch.training.clear()  # before the look at the pause: whoever asks later finds it so
            if watch.pause.is_set():
                raise PausedError(f"after run {len(records)} of {len(grid.runs)}")
            strategy = load_strategy(config)
            try:
                return run(config, strategy, watch, engine=engine, resume=resume)[0]
            except PausedError as pause:
                number = f"run {len(records) + 1} of {len(grid.runs)}"
                raise PausedError(f"{pause}, {number}") from None

        for cell, asked in grid.runs:
            config = with_ring_of(as_it_runs(asked, load_strategy), starts)
            same = (place for known, place in done if is_same(known, config))
            path = next((place for place in same if has_current_key(config, place)), None)
            begun = (place for known, place in broken_off if is_same(known, config))
            place = next((place for place in begun if can_go_on(config, place)), None)
            record = (
                _attempt(cell, config, folder, place, execute)
                if path is None
                else _read(cell, config, path)
            )
            if record.failed:
                engine.stop()  # whatever is wrong with it, the next run has a fresh one
            if record.folder is not None:
                done.append((config, record.folder))
            records.append(record)
            write_tables(folder, tell(grid, records))
            yield record
    write_plots(folder, tell(grid, records))


def tell(grid: Grid, records: list[Record]) -> Report:
    """Sums up the runs of a grid."""
    return report(grid.title, records, grid.baselines)


def runs_in(folder: Path, *, finished: bool) -> list[tuple[Config, Path]]:
    """Finds runs in a folder, those with a result or those without.

    Returns:
        Each one's configuration but for `out`, and its folder.
    """
    found = []
    for path in sorted(folder.glob(f"**/{CONFIG}")):
        # A configuration of another version is none of this grid. A damaged result is none, nor is
        # one whose saving was told against another reference: such a run is run again.
        with suppress(UserError):
            config, result = find_run(path.parent)
            if (result is not None) == finished and (result is None or has_current_form(result)):
                found.append((dataclasses.replace(config, out=None), path.parent))
    return found


def as_it_runs(config: Config, load_strategy: LoadStrategy) -> Config:
    """Names the strategy that a run has, by which it is known in its folder."""
    try:
        return told(config, load_strategy(config))
    except UserError:  # is told when the run is tried
        return config


def is_same(known: Config, config: Config) -> bool:
    """Tells whether two experiments are the same, wherever the key ring lies.

    Which secret it holds is compared by `has_current_key`.
    """
    ring = config.encryption.key_file
    encryption = dataclasses.replace(known.encryption, key_file=ring)
    return dataclasses.replace(known, encryption=encryption) == config


def has_current_key(config: Config, run_folder: Path) -> bool:
    """Tells whether a run's images were encrypted under the secret that encrypts now.

    Another secret makes another experiment, which is not to stand in one table with the others.
    """
    if not config.encryption.steps:
        return True
    ring = Path(config.encryption.key_file)
    key = ""
    if (run_folder / RESULT).exists():
        key = read_result(run_folder)["encryption"]["key_id"]
    else:
        with suppress(UserError):  # none is there yet
            key = shards_of(run_folder, storage_keys(config)).key
    return ring.exists() and key == key_id(open_ring(ring).current)


def can_go_on(config: Config, run_folder: Path) -> bool:
    """Tells whether a run that was broken off can be taken up where it is."""
    lost = lacks_checkpoints(run_folder, config.checkpoint_every)
    return not lost and has_current_key(config, run_folder)


def _attempt(
    cell: Cell, config: Config, folder: Path, broken_off: Path | None, execute: Execute
) -> Record:
    """Runs one experiment, in a new folder or where it was broken off; or says why it cannot."""
    place = broken_off or _unused(folder / folder_name(cell.labels, config.seed))
    record = Record(labels=cell.labels, seed=config.seed)
    try:
        result = execute(dataclasses.replace(config, out=str(place)), resume=bool(broken_off))
    except UserError as error:
        return dataclasses.replace(record, problem=_line("refused", error))
    except RuntimeError as error:
        return dataclasses.replace(record, problem=_line("failed", error), failed=True)
    return dataclasses.replace(record, result=result, folder=place)


def _read(cell: Cell, config: Config, path: Path) -> Record:
    """Reads a run that was done before."""
    return Record(labels=cell.labels, seed=config.seed, result=read_result(path), folder=path)


def _unused(path: Path) -> Path:
    """Finds a name that is free; what was broken off stays beside, untouched."""
    names = (path if not i else path.with_name(f"{path.name}-again{i}") for i in range(1_000_000))
    return next(name for name in names if not name.exists())


def _line(what: str, error: Exception) -> str:
    return f"{what}: {' '.join(str(error).split())}"
