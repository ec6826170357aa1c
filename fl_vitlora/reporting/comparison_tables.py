"""The tables of a comparison, for programs (CSV), for a README (Markdown) and for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fl_vitlora.config.grid_labels import name_of
from fl_vitlora.config.units import readable_bytes, unit_of
from fl_vitlora.reporting.plots import plot_comparison
from fl_vitlora.reporting.statistics import (
    Difference,
    Record,
    Summary,
    differences,
    percent,
    summarise,
)
from fl_vitlora.reporting.table_layout import print_table, print_wrapped, screen
from fl_vitlora.storage.files import make_folder, write_atomically

Row = Mapping[str, object]

WIRE = (
    "uplink_bytes",
    "downlink_bytes",
    "full_fine_tuning_bytes",
    "saving",
    "saving_with_flower",
)
RUN = (
    "seed",
    "accuracy",
    "loss",
    "aggregation_error",
    *WIRE,
    "trainable_parameters",
    "total_parameters",
    "seconds",
    "folder",
    "problem",
)
CELL = (
    "seeds",
    "accuracy_percent",
    "standard_deviation",
    "trainable_parameters",
    "total_parameters",
    "sent_bytes",
    "saving",
    "saving_with_flower",
    "median_seconds",
    "aggregation_error_percent",
    "aggregation_error_deviation",
    "bytes_to_target",
    "bytes_to_target_deviation",
    "reached_target",
    "problem",
)
DIFFERENCE = ("compared_axis", "baseline", "difference_points", "standard_error", "pairs")
READABLE = ("accuracy %", "seeds", "trained", "sent", "saving", "s")
MEANING = (
    "Test accuracy: mean ± sample standard deviation over the seeds; trained: parameters; saving: "
    "bytes of full fine-tuning under FedAvg, with the same participants, over the bytes sent; s: "
    "the median of a run."
)
MEANING_OF_ERROR = (
    "Aggregation error: how far the new product B·A of the low-rank matrices is from the mean of "
    "the clients' products, in percent of how far that moved in the round; the mean over the "
    "rounds. What hostile clients sent counts in the mean."
)
DIFFERENCES = "Differences in test accuracy, paired by seed, the best first: mean ± standard error"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is told of a comparison.

    Attributes:
        title: Heads the tables.
        axes: Names of the axes.
        records: The runs.
        summaries: The cells.
        differences: Between cells.
    """

    title: str
    axes: Sequence[str]
    records: Sequence[Record]
    summaries: Sequence[Summary]
    differences: Sequence[Difference]


def report(title: str, records: Sequence[Record], baselines: Mapping[str, str]) -> Report:
    """Sums up runs; ``baselines`` names all axes and what is compared with on each."""
    return Report(
        title=title,
        axes=list(baselines),
        records=records,
        summaries=summarise(records),
        differences=differences(records, baselines),
    )


def write_tables(folder: Path, told: Report) -> None:
    """Writes `runs.csv`, `table.csv`, `differences.csv` and `table.md`."""
    for name, columns, rows in (
        ("runs", RUN, run_rows(told, folder)),
        ("table", CELL, cell_rows(told)),
        ("differences", DIFFERENCE, difference_rows(told)),
    ):
        write_atomically(folder / f"{name}.csv", to_csv([*told.axes, *columns], rows))
    write_atomically(folder / "table.md", to_markdown(told))


def write_plots(folder: Path, told: Report) -> None:
    """Draws the cells that have a result."""
    cells = [summary for summary in told.summaries if summary.accuracy]
    if cells:
        make_folder(folder / "plots")
        plot_comparison(folder / "plots", cells, told.title)


def run_rows(told: Report, root: Path) -> Iterator[Row]:
    """Makes a row for each run; folders are told as seen from ``root``."""
    for run in told.records:
        row: dict[str, object] = {**run.labels, "seed": run.seed, "problem": run.problem}
        if run.result is not None and run.folder is not None:
            row |= {name: run.result[name] for name in RUN if name in run.result}
            row |= {name: run.result["communication"][name] for name in WIRE}
            row |= {"seconds": run.result["seconds"]["total"]}
            row |= {"folder": run.folder.relative_to(root).as_posix()}
        yield row


def cell_rows(told: Report) -> Iterator[Row]:
    """Makes a row for each cell."""
    for cell in told.summaries:
        row: dict[str, object] = {**cell.labels, "seeds": cell.seeds}
        row |= {"problem": "; ".join(cell.problems)}
        if cell.accuracy is not None:
            row |= {
                "accuracy_percent": cell.accuracy.mean,
                "standard_deviation": cell.accuracy.spread,
                "trainable_parameters": cell.trainable,
                "total_parameters": cell.total,
                "sent_bytes": cell.sent,
                "saving": cell.saving,
                "saving_with_flower": cell.saving_with_flower,
                "median_seconds": cell.seconds,
            }
        if cell.aggregation_error is not None:
            row |= {
                "aggregation_error_percent": cell.aggregation_error.mean,
                "aggregation_error_deviation": cell.aggregation_error.spread,
            }
        if cell.targets:
            row |= {"reached_target": cell.reached}
        if cell.to_target is not None:
            row |= {
                "bytes_to_target": cell.to_target.mean,
                "bytes_to_target_deviation": cell.to_target.spread,
            }
        yield row


def difference_rows(told: Report) -> Iterator[Row]:
    """Makes a row for each difference."""
    for one in told.differences:
        yield {
            **one.others,
            one.axis: one.label,
            "compared_axis": one.axis,
            "baseline": one.baseline,
            "difference_points": one.accuracy.mean,
            "standard_error": one.accuracy.spread,
            "pairs": one.pairs,
        }


def readable_cells(told: Report) -> list[list[str]]:
    """Makes a row of texts for each cell, under a row of names; no column says nothing."""
    extra: dict[str, Callable[[Summary], str]] = {}
    if any(cell.targets for cell in told.summaries):
        extra["to target"] = _told_target
    if has_errors(told):
        extra["aggregation error %"] = lambda cell: str(cell.aggregation_error or "")
    rows = [[*told.axes, *READABLE, *extra]]
    for cell in told.summaries:
        problems = " and ".join(dict.fromkeys(p.split(":")[0] for p in cell.problems))
        numbers = [problems, *(len(READABLE) - 1) * [""]]
        if cell.accuracy is not None:
            numbers = [
                str(cell.accuracy),
                str(cell.seeds),
                f"{cell.trainable:,}",
                readable_bytes(cell.sent),
                f"{cell.saving:.1f}x",
                f"{cell.seconds:.0f}",
            ]
        told_more = [tell(cell) for tell in extra.values()]
        rows.append([*(cell.labels.get(axis, "") for axis in told.axes), *numbers, *told_more])
    return rows


def _told_target(cell: Summary) -> str:
    """Tells what a cell's runs had sent when they reached the target, and how many did."""
    if cell.to_target is None:
        return "not reached" if cell.targets else ""
    some = "" if cell.reached == cell.targets else f" ({cell.reached} of {cell.targets})"
    factor, unit = unit_of(cell.to_target.mean)
    return f"{cell.to_target.scaled(1 / factor)} {unit}{some}"


def has_errors(told: Report) -> bool:
    """Tells whether any cell has an aggregation error; else its column is left out."""
    return any(cell.aggregation_error is not None for cell in told.summaries)


def readable_differences(told: Report) -> list[list[str]]:
    """Makes a row of texts for each difference, under a row of names."""
    rows = [["compared", "at", "difference, points", "pairs"]]
    for one in told.differences:
        compared = f"{one.label} against {one.baseline}"
        sign = "+" if one.accuracy.mean >= 0 else ""
        at = ", ".join(one.others.values())
        rows.append([compared, at, f"{sign}{one.accuracy}", str(one.pairs)])
    return rows


def readable_problems(told: Report) -> list[str]:
    """Tells why runs are missing, and warnings: each once for a cell, with the seeds it is of."""
    found: dict[tuple[str, str], list[int]] = {}
    for run in told.records:
        warned = (run.result or {}).get("warnings", ())
        for problem in [
            *([run.problem] if run.problem else []),
            *(f"warning: {w}" for w in warned),
        ]:
            found.setdefault((name_of(run.labels), problem), []).append(run.seed)
    return [
        f"{name}, seed {', '.join(map(str, seeds))}: {problem}"
        for (name, problem), seeds in found.items()
    ]


def to_csv(columns: Sequence[str], rows: Iterable[Row]) -> str:
    r"""Writes rows as comma-separated values; what a row lacks is empty.

    Example:
        >>> to_csv(["images", "seed"], [{"images": "a,b", "seed": 0}, {"seed": 1}])
        'images,seed\n"a,b",0\n,1\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_markdown(told: Report) -> str:
    """Writes the cells and their differences as a section of Markdown."""
    parts = [f"# {told.title}"] if told.title else []
    parts.append(markdown_table(readable_cells(told), texts=len(told.axes)))
    parts.extend(f"* {problem}" for problem in readable_problems(told))
    parts.append(f"{MEANING} {MEANING_OF_ERROR}" if has_errors(told) else MEANING)
    if told.differences:
        parts.append(markdown_table(readable_differences(told), texts=2))
        parts.append(f"{DIFFERENCES}.")
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Writes a table whose first columns are texts and whose others are numbers.

    Example:
        >>> print(markdown_table([["method", "%"], ["lora", "95.6"]], texts=1))
        | method | % |
        |---|--:|
        | lora | 95.6 |
    """
    marks = ["---" if column < texts else "--:" for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[1:]])


def print_report(told: Report, folder: str, console: Console | None = None) -> None:
    """Prints what `table.md` holds."""
    console = console or screen()
    print_table(console, readable_cells(told), len(told.axes), told.title)
    for problem in readable_problems(told):
        print_wrapped(console, Text(problem))
    if told.differences:
        console.print()
        print_table(console, readable_differences(told), 2, DIFFERENCES)
    console.print(f"grid folder  {folder}", markup=False, soft_wrap=True)


def describe(record: Record) -> str:
    """Says in a line how a run ended."""
    name = f"{name_of(record.labels)}, seed {record.seed}"
    if record.result is None:
        return f"{name}: {record.problem}"
    seconds = record.result["seconds"]["total"]
    return f"{name}: {percent(record):.2f} %, {seconds:.1f} s, {record.folder}"
