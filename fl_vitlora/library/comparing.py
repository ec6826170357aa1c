"""Runs a comparison of experiments from a Python program, and opens a finished one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fl_vitlora.config import Config, nested
from fl_vitlora.config.confirmation import check_confirmed, texts_in
from fl_vitlora.config.grid import SECTIONS, Grid, is_grid, read_grid
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.library.callbacks import Callback
from fl_vitlora.library.finished import FinishedRun, load_run
from fl_vitlora.library.running import watch_for
from fl_vitlora.reporting.comparison_rows import cell_rows, difference_rows, run_rows
from fl_vitlora.reporting.comparison_tables import Report, report, to_markdown
from fl_vitlora.reporting.grid_folder import GRID, RUNS, read_records
from fl_vitlora.reporting.report.writing import write_report
from fl_vitlora.reporting.statistics import Record

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedComparison:
    """A comparison whose runs have ended.

    Attributes:
        folder: The folder of the comparison, with the folders of its runs.
        grid: The experiments that were compared.
        records: The record of each run, in the order of the grid.
        trust: The names of code from elsewhere that the runs may import.
    """

    folder: Path
    grid: Grid = field(repr=False)
    records: tuple[Record, ...] = field(repr=False)
    trust: frozenset[str] = frozenset()

    @cached_property
    def rows(self) -> list[Row]:
        """Returns the table: a dictionary for each cell, which is a set of runs with all seeds.

        A row has the label of the cell on each axis, and the columns of `table.csv`, such as
        `accuracy_percent` (the mean over the seeds), `standard_deviation` and `sent_bytes`. Runs
        without a result are left out of the numbers, and the key `problem` says why. The function
        `pandas.DataFrame` makes a table of the rows.
        """
        return [dict(row) for row in cell_rows(self._report.summaries)]

    @cached_property
    def run_rows(self) -> list[Row]:
        """Returns a dictionary for each run, with the columns of `runs.csv`."""
        return [dict(row) for row in run_rows(self.records, self.folder)]

    @cached_property
    def differences(self) -> list[Row]:
        """Returns the differences between cells, paired by seed, as `differences.csv` has them."""
        return [dict(row) for row in difference_rows(self._report.differences)]

    @cached_property
    def runs(self) -> tuple[FinishedRun, ...]:
        """Returns all runs that have a result, in the order of the grid."""
        return tuple(
            load_run(record.folder, trust=self.trust)
            for record in self.records
            if record.folder is not None
        )

    @property
    def problems(self) -> dict[str, str]:
        """Returns the reason why a run has no result, by the run's labels and its seed."""
        return {_name(record): record.problem for record in self.records if record.problem}

    def find(self, labels: Mapping[str, str] | str = "", seed: int | None = None) -> FinishedRun:
        """Returns a run by its labels.

        Args:
            labels: A mapping from axes to the labels of the run on these axes, or a single label if
                it belongs to only one axis.
            seed: The seed of the run; None for the first seed.

        Raises:
            UserError: If no run has these labels, if the labels fit more than one combination of
                values, or if the run has no result.
        """
        wanted = labels.values() if isinstance(labels, Mapping) else [labels] if labels else []
        axes = labels if isinstance(labels, Mapping) else {}
        found = [
            record
            for record in self.records
            if all(record.labels.get(axis) == label for axis, label in axes.items())
            and all(label in record.labels.values() for label in wanted)
            and (record.seed == (self.grid.seeds[0] if seed is None else seed))
        ]
        if len(found) != 1:
            known = "; ".join(_name(record) for record in found or self.records)
            many = "several runs" if found else "no run"
            raise UserError(f"{self.folder}: {many} with these labels; expected one of: {known}")
        if found[0].folder is None:
            raise UserError(f"{self.folder}: {_name(found[0])} has no result: {found[0].problem}")
        return load_run(found[0].folder, trust=self.trust)

    def table(self) -> str:
        """Returns the tables with mean ± standard deviation as Markdown, as `table.md` has them."""
        return to_markdown(self._report)

    def report(self, out: str | Path | None = None) -> Path:
        """Writes a report of the comparison: one HTML file with charts and tables.

        Args:
            out: The file to write; None for `report.html` in the folder of the comparison.

        Returns:
            The file. It contains everything that it shows, and loads nothing from the network.

        Raises:
            UserError: If the packages for reports are missing, or the file cannot be written.
        """
        return write_report(self.folder, None if out is None else Path(out))

    def _repr_markdown_(self) -> str:
        """Returns the tables as Markdown, which a notebook shows as the output of a cell."""
        return self.table()

    @cached_property
    def _report(self) -> Report:
        return report(self.grid.title, self.records, self.grid.baselines)


def compare(
    grid: Mapping[str, Any] | str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    trust: Collection[str] = (),
) -> FinishedComparison:
    """Runs a comparison of experiments, as `simulate.py --compare` does.

    Ray is started once for all runs. The folder of the comparison (setting `out`) is locked while
    it runs. If the folder has finished runs of the comparison, they are not repeated; if it has an
    interrupted run, this run is continued. A run that fails or is refused does not end the
    comparison.

    Args:
        grid: The comparison: the path of a YAML file such as those in ``configs/grids``, or a
            mapping with settings and the keys `compare`, `seeds`, `baseline` and `title`. For
            example ``{"compare": {"finetuning.method": ["head", "lora"]}, "seeds": range(3)}``.
        settings: Single settings by their dotted paths, which replace those of all experiments.
        callbacks: Objects that follow each run that is executed. They are not called for runs that
            were finished before.
        verbose: True if Flower and Ray may write messages.
        trust: The names of code from elsewhere that a YAML file may name, as for `run`.

    Raises:
        UserError: If the comparison cannot be read, or if its folder cannot be used.
    """
    from fl_vitlora.experiment import comparison
    from fl_vitlora.experiment.known_runs import with_seed_of_shards

    read = grid_of(grid, settings)
    confirmed = frozenset(trust) | _named_by_caller(grid, settings)
    for cell in read.cells:
        check_confirmed(cell.config, confirmed)
    read = with_seed_of_shards(read)
    folder = Path(read.out) if read.out else comparison.default_folder()
    with comparison.prepare_folder(folder, read):
        records = tuple(_followed(read, folder, confirmed, callbacks, verbose=verbose))
    return FinishedComparison(folder=folder, grid=read, records=records, trust=confirmed)


def load_comparison(folder: str | Path, *, trust: Collection[str] = ()) -> FinishedComparison:
    """Opens the folder of a comparison, and starts no run.

    Args:
        folder: The folder. If the comparison was interrupted, only the runs that have ended are
            found.
        trust: The names of code from elsewhere that the runs may import, as for `load_run`.

    Raises:
        UserError: If the folder is not that of a comparison, or none of its runs has ended.
    """
    folder = Path(folder)
    for name in (GRID, RUNS):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder}: expected the folder of a comparison with at least one run that has "
                f"ended, but there is no file {name}"
            )
    grid = read_grid(read_yaml(str(folder / GRID)), {})
    records = tuple(read_records(grid, folder))
    return FinishedComparison(folder=folder, grid=grid, records=records, trust=frozenset(trust))


def grid_of(
    grid: Mapping[str, Any] | str | Path, settings: Mapping[str, Any] | None = None
) -> Grid:
    """Returns a comparison in any of the forms that `compare` accepts.

    Raises:
        UserError: If nothing is compared, or if a setting is not valid.

    Example:
        >>> grid = grid_of({"compare": {"clients": (2, 3)}, "seeds": range(2), "data.limit": 50})
        >>> [(cell.name, cell.config.data.limit) for cell in grid.cells], grid.seeds
        ([('2', 50), ('3', 50)], (0, 1))
    """
    given = dict(settings or {})
    if isinstance(grid, Mapping):
        own = {name: value for name, value in grid.items() if name not in SECTIONS}
        tree = nested(own) | {n: _listed(grid[n]) for n in SECTIONS if n in grid}
    else:
        tree = read_yaml(str(grid))
    if not is_grid(tree):
        raise UserError(
            "fv.compare: expected the key compare or seeds, which say what is compared; fv.run "
            "runs one experiment"
        )
    return read_grid(tree, given)


def _followed(
    grid: Grid,
    folder: Path,
    confirmed: frozenset[str],
    callbacks: Sequence[Callback],
    *,
    verbose: bool,
) -> Iterator[Record]:
    """Runs a comparison with callbacks, and yields the record of each run."""
    import strategies
    from fl_vitlora.experiment import comparison

    begun = list[Config]()

    def begin(config: Config) -> None:
        begun.append(config)
        for callback in callbacks:
            callback.on_run_begin(config)

    watch = dataclasses.replace(watch_for(callbacks, verbose=verbose), begin=begin)
    load = functools.partial(strategies.load_for, confirmed=confirmed)
    for record in comparison.compare(grid, folder, load, watch):
        if begun and record.folder is not None:
            finished = load_run(record.folder, trust=confirmed)
            for callback in callbacks:
                callback.on_run_end(finished)
        begun.clear()
        yield record


def _named_by_caller(
    grid: Mapping[str, Any] | str | Path, settings: Mapping[str, Any] | None
) -> set[str]:
    """Returns all texts that the caller wrote, without the texts that only a file contains."""
    own = _listed(grid) if isinstance(grid, Mapping) else {}
    return set(texts_in([own, dict(settings or {})]))


def _listed(value: Any) -> Any:
    """Returns a value in which tuples and ranges are lists, as a YAML file has them."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple | range) else value


def _name(record: Record) -> str:
    return ", ".join([*record.labels.values(), f"seed {record.seed}"])
