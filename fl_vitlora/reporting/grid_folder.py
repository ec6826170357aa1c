"""Reads the runs of a comparison from its folder alone; the table `runs.csv` lists the runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from fl_vitlora.config.grid import Grid, read_grid
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.comparison_tables import Report, report
from fl_vitlora.reporting.run_folder import read_result
from fl_vitlora.reporting.statistics import Record

GRID, RUNS = "grid.yaml", "runs.csv"


def read_comparison(folder: Path) -> Report:
    """Returns the content of the tables of a comparison.

    Args:
        folder: The grid folder. Its file `runs.csv` names the run folders below it.

    Raises:
        UserError: If the folder has no table of runs, or a file cannot be read.
    """
    grid = read_grid(read_yaml(str(folder / GRID)), {})
    return report(grid.title, read_records(grid, folder), grid.baselines)


def read_records(grid: Grid, folder: Path) -> list[Record]:
    """Returns the record of each run that has ended, from the table of runs.

    Raises:
        UserError: If the folder has no table of runs, or a file cannot be read.
    """
    path = folder / RUNS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_record(folder, row, grid.baselines) for row in csv.DictReader(file)]
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read: {error}; the comparison writes this file after its first run"
        ) from None


def _record(folder: Path, row: Mapping[str, str], axes: Mapping[str, str]) -> Record:
    """Returns the record of a run from its row in `runs.csv`.

    Raises:
        UserError: If the row names a folder outside of the grid folder.
    """
    labels = {axis: row[axis] for axis in axes if row.get(axis)}
    seed, problem = int(row["seed"]), row["problem"]
    if not row["folder"]:
        return Record(labels=labels, seed=seed, problem=problem)
    place = folder / row["folder"]
    if not place.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / RUNS}: {row['folder']} is not a folder in {folder}")
    return Record(labels=labels, seed=seed, result=read_result(place), folder=place)
