"""The tables of a comparison, as CSV for programs, as Markdown, and as text for the screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fl_vitlora.config.grid_labels import name_of
from fl_vitlora.config.units import readable_bytes, unit_of
from fl_vitlora.reporting.comparison_rows import (
    CELL,
    DIFFERENCE,
    RUN,
    cell_rows,
    difference_rows,
    run_rows,
    to_csv,
)
from fl_vitlora.reporting.statistics import (
    Difference,
    Record,
    Summary,
    differences,
    is_ranked_by_validation,
    percent,
    summarise,
    validation_percent,
)
from fl_vitlora.reporting.table_layout import print_table, print_wrapped, screen
from fl_vitlora.storage.files import make_folder, write_atomically

READABLE = ("accuracy %", "seeds", "trained", "sent", "saving", "s")
MEANING = (
    "Test accuracy: mean ± sample standard deviation over the seeds; trained: number of trained "
    "parameters; saving: the bytes that full fine-tuning with FedAvg and the same participants "
    "would send, divided by the bytes sent; s: the median duration of a run in seconds."
)
MEANING_OF_ERROR = (
    "Aggregation error: the distance between the new adapted weights and the mean of the clients' "
    "adapted weights, in percent of the distance by which this mean moved in the round. The table "
    "has the mean over the rounds. The updates of hostile clients are included."
)
MEANING_OF_CLASSES = (
    "Macro F1: the mean of F1 over the classes with test images. Worst tenth of clients: the mean "
    "accuracy of the worst tenth of the clients, each on its own test images."
)
MEANING_OF_VALIDATION = (
    "Validation: the accuracy on the validation images, a part of the training images on which no "
    "client trains. The test images are never used to choose anything."
)
DIFFERENCES = "Differences in test accuracy, paired by seed, the best first: mean ± standard error"
BY_VALIDATION = (
    "Differences in test accuracy, paired by seed, ordered by validation accuracy, the best first: "
    "mean ± standard error"
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of all tables of a comparison.

    Attributes:
        title: The title above the tables.
        axes: The names of the axes. An axis is a setting that differs between the cells.
        records: The runs of the comparison.
        summaries: One summary for each cell. A cell is a set of runs that differ only in their
            seed.
        differences: The differences in accuracy between pairs of cells.
    """

    title: str
    axes: Sequence[str]
    records: Sequence[Record]
    summaries: Sequence[Summary]
    differences: Sequence[Difference]


def report(title: str, records: Sequence[Record], baselines: Mapping[str, str]) -> Report:
    """Returns the content of all tables, computed from the runs of a comparison.

    Args:
        title: The title above the tables.
        records: The runs of the comparison.
        baselines: For each axis (a setting that differs between runs), the value with which the
            other values are compared.
    """
    return Report(
        title=title,
        axes=list(baselines),
        records=records,
        summaries=summarise(records),
        differences=differences(records, baselines),
    )


def write_tables(folder: Path, comparison: Report) -> None:
    """Writes the tables of a comparison to a folder.

    These are `runs.csv`, `table.csv` and `differences.csv` for programs, `table.md` for people, and
    `table.tex` for papers.
    """
    from fl_vitlora.reporting.latex_tables import to_latex  # imports this module

    for name, columns, rows in (
        ("runs", RUN, run_rows(comparison.records, folder)),
        ("table", CELL, cell_rows(comparison.summaries)),
        ("differences", DIFFERENCE, difference_rows(comparison.differences)),
    ):
        write_atomically(folder / f"{name}.csv", to_csv([*comparison.axes, *columns], rows))
    write_atomically(folder / "table.md", to_markdown(comparison))
    write_atomically(folder / "table.tex", to_latex(comparison))


def write_plots(folder: Path, comparison: Report) -> None:
    """Writes plots of the cells that have a result to the subfolder `plots`."""
    cells = [summary for summary in comparison.summaries if summary.accuracy]
    if cells:
        from fl_vitlora.reporting.comparison_plots import plot_comparison  # imports matplotlib

        make_folder(folder / "plots")
        plot_comparison(folder / "plots", cells, comparison.title)


def readable_cells(comparison: Report) -> list[list[str]]:
    """Returns the table for people: a header row, and a row of texts for each cell.

    Columns that would be empty are left out.
    """
    extra: dict[str, Callable[[Summary], str]] = {}
    if has_validation(comparison):
        extra["validation %"] = lambda cell: str(cell.validation or "")
    if any(cell.macro_f1 is not None for cell in comparison.summaries):
        extra["macro F1 %"] = lambda cell: str(cell.macro_f1 or "")
    if any(cell.worst_tenth is not None for cell in comparison.summaries):
        extra["worst tenth of clients %"] = lambda cell: str(cell.worst_tenth or "")
    if any(cell.targets for cell in comparison.summaries):
        extra["to target"] = _target_text
    if has_errors(comparison):
        extra["aggregation error %"] = lambda cell: str(cell.aggregation_error or "")
    rows = [[*comparison.axes, *READABLE, *extra]]
    for cell in comparison.summaries:
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
        names = [cell.labels.get(axis, "") for axis in comparison.axes]
        rows.append([*names, *numbers, *(text_of(cell) for text_of in extra.values())])
    return rows


def _target_text(cell: Summary) -> str:
    """Returns a text: the bytes sent until the target, and how many runs reached this target."""
    if cell.to_target is None:
        return "not reached" if cell.targets else ""
    some = "" if cell.reached == cell.targets else f" ({cell.reached} of {cell.targets})"
    factor, unit = unit_of(cell.to_target.mean)
    return f"{cell.to_target.scaled(1 / factor)} {unit}{some}"


def has_validation(comparison: Report) -> bool:
    """Returns True if a cell has a validation accuracy.

    If no cell has a validation accuracy, tables omit the column of the validation accuracy.
    """
    return any(cell.validation is not None for cell in comparison.summaries)


def has_details(comparison: Report) -> bool:
    """Returns True if a cell has a macro F1, or an accuracy of the worst tenth of the clients."""
    return any(cell.macro_f1 or cell.worst_tenth for cell in comparison.summaries)


def heading_of_differences(comparison: Report) -> str:
    """Returns the heading of the table of differences, which says how the rows are ordered."""
    return BY_VALIDATION if is_ranked_by_validation(comparison.differences) else DIFFERENCES


def has_errors(comparison: Report) -> bool:
    """Returns True if a cell has an aggregation error.

    If no run of the comparison has a value of the aggregation error, tables omit its column.
    """
    return any(cell.aggregation_error is not None for cell in comparison.summaries)


def readable_differences(comparison: Report) -> list[list[str]]:
    """Returns the table of differences for people: a header row, and a row for each difference."""
    rows = [["compared", "at", "difference, points", "pairs"]]
    for difference in comparison.differences:
        compared = f"{difference.label} against {difference.baseline}"
        sign = "+" if difference.accuracy.mean >= 0 else ""
        at = ", ".join(difference.others.values())
        rows.append([compared, at, f"{sign}{difference.accuracy}", str(difference.pairs)])
    return rows


def readable_problems(comparison: Report) -> list[str]:
    """Returns sentences that say why runs have no result, and which warnings other runs gave.

    Each sentence names the cell and the seeds of its runs. If several runs of a cell have the same
    problem, there is one sentence with all their seeds.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for run in comparison.records:
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


def to_markdown(comparison: Report) -> str:
    """Returns the tables of cells and differences, with explanations, as a section of Markdown."""
    parts = [f"# {comparison.title}"] if comparison.title else []
    parts.append(markdown_table(readable_cells(comparison), texts=len(comparison.axes)))
    parts.extend(f"* {problem}" for problem in readable_problems(comparison))
    further = {
        MEANING_OF_CLASSES: has_details(comparison),
        MEANING_OF_VALIDATION: has_validation(comparison),
        MEANING_OF_ERROR: has_errors(comparison),
    }
    parts.append(" ".join([MEANING, *(text for text, is_shown in further.items() if is_shown)]))
    if comparison.differences:
        parts.append(markdown_table(readable_differences(comparison), texts=2))
        parts.append(f"{heading_of_differences(comparison)}.")
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Sequence[str]], texts: int) -> str:
    """Returns a Markdown table.

    The first `texts` columns of the table are texts, and the other columns are numbers.

    Example:
        >>> print(markdown_table([["method", "%"], ["lora", "95.6"]], texts=1))
        | method | % |
        |---|--:|
        | lora | 95.6 |
    """
    marks = ["---" if column < texts else "--:" for column in range(len(rows[0]))]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join(marks)}|", *lines[1:]])


def print_report(comparison: Report, folder: str, console: Console | None = None) -> None:
    """Prints the content of `table.md`, and the path of the comparison's folder."""
    console = console or screen()
    print_table(console, readable_cells(comparison), len(comparison.axes), comparison.title)
    for problem in readable_problems(comparison):
        print_wrapped(console, Text(problem))
    if comparison.differences:
        console.print()
        heading = heading_of_differences(comparison)
        print_table(console, readable_differences(comparison), 2, heading)
    console.print(f"comparison folder  {folder}", markup=False, soft_wrap=True)


def describe(record: Record) -> str:
    """Returns one line with the accuracy, duration and folder of a run, or with its problem."""
    name = f"{name_of(record.labels)}, seed {record.seed}"
    if record.result is None:
        return f"{name}: {record.problem}"
    seconds, held = record.result["seconds"]["total"], validation_percent(record)
    validation = "" if held is None else f" (validation {held:.2f} %)"
    return f"{name}: {percent(record):.2f} %{validation}, {seconds:.1f} s, {record.folder}"
