"""Says from the files of a comparison's folder which of its runs have ended, run or wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fl_vitlora.config.grid import Grid, read_grid
from fl_vitlora.config.grid_labels import folder_name, name_of
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.grid_folder import GRID, RUNS, read_records
from fl_vitlora.reporting.live.run_state import Files, RunState, State, read_state
from fl_vitlora.reporting.run_folder import CONFIG
from fl_vitlora.reporting.statistics import Record
from fl_vitlora.storage.locks import is_locked

Key = tuple[tuple[tuple[str, str], ...], int]  # the labels of a cell on its axes, and a seed
AT_WORK = ("preparing", "running")


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """A run of a comparison.

    Attributes:
        name: The labels of its cell.
        seed: The seed of the run.
        state: What the run is doing: "waiting" if it has no folder, "without result" if it was
            refused or failed, or the state of its folder.
        problem: The reason why the run has no result; empty if there is none.
        run: What the run has done so far; None without a folder.
    """

    name: str
    seed: int
    state: State | Literal["waiting", "without result"]
    problem: str = ""
    run: RunState | None = None


@dataclass(frozen=True, kw_only=True)
class GridState:
    """What a comparison has done so far.

    Attributes:
        folder: The folder of the comparison.
        grid: The experiments that are compared.
        locked: True if a program works on the comparison; None if that is unknown.
        runs: All runs, in the order of the comparison.
    """

    folder: Path
    grid: Grid
    locked: bool | None
    runs: Sequence[GridRun]

    @property
    def state(self) -> State:
        """Returns what the comparison is doing."""
        if all(run.state in ("ended", "without result") for run in self.runs):
            return "ended"
        if self.locked is None:
            return "unfinished"
        return "running" if self.locked else "interrupted"

    def count(self, *states: str) -> int:
        """Returns the number of runs in one of several states."""
        return sum(1 for run in self.runs if run.state in states)


def read_grid_state(folder: Path, files: Files) -> GridState:
    """Reads what a comparison has done so far.

    Args:
        folder: The folder of the comparison.
        files: The object that remembers files that have not changed.

    Raises:
        UserError: If the folder is not that of a comparison, or a file in it cannot be read.
    """
    locked = is_locked(folder)
    grid = files.read(folder / GRID, lambda path: read_grid(read_yaml(str(path)), {}))
    if grid is None:
        raise UserError(f"{folder} contains no comparison; expected a folder with a {GRID}")
    found = files.read(folder / RUNS, lambda path: read_records(grid, path.parent)) or []
    records = {_key(record.labels, record.seed): record for record in found}
    runs = [
        _run(folder, cell.labels, config.seed, records.get(_key(cell.labels, config.seed)), files)
        for cell, config in grid.runs
    ]
    return GridState(folder=folder, grid=grid, locked=locked, runs=runs)


def _run(
    folder: Path, labels: Mapping[str, str], seed: int, record: Record | None, files: Files
) -> GridRun:
    """Returns a run of a comparison, from its row in `runs.csv` or else from its folder."""
    name = name_of(labels)
    place = record.folder if record is not None else None
    place = place or newest_of(folder / folder_name(labels, seed))
    run = None if place is None else read_state(place, files)
    if record is not None and record.problem and (run is None or run.state not in AT_WORK):
        return GridRun(name=name, seed=seed, state="without result", problem=record.problem)
    return GridRun(name=name, seed=seed, state="waiting" if run is None else run.state, run=run)


def newest_of(first: Path) -> Path | None:
    """Returns the newest run folder of a cell and a seed; None if there is no run folder.

    If a folder with the usual name cannot be continued, a comparison makes another one, whose name
    ends in "-again1", and so on.
    """
    newest = first if (first / CONFIG).is_file() else None
    number = 1
    while (again := first.with_name(f"{first.name}-again{number}")).exists():
        newest = again if (again / CONFIG).is_file() else newest
        number += 1
    return newest


def _key(labels: Mapping[str, str], seed: int) -> Key:
    return tuple(sorted(labels.items())), seed
