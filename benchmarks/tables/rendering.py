"""The rows of a table: from the folder of a comparison, or from what a command printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import mean

from fl_vitlora.checkpoints.logbook import ROUNDS
from fl_vitlora.config.units import readable_bytes
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.reporting.comparison_tables import Report
from fl_vitlora.reporting.statistics import Summary

SEPARATOR = re.compile(r"^\|[-: |]+\|$")
REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a table is made from a comparison.

    Attributes:
        rows: The axes whose labels begin a row. An entry with several axes, joined by a comma,
            makes one column with their labels.
        columns: The figures of a row, by their names in `FIGURES`.
        across: An axis whose labels are the further columns of the table, with the accuracy in each
            cell; empty if `columns` names the figures.
        where: Only cells with these labels are shown.
        without: A label whose cells are not shown, such as that of the baseline.
        names: Words for labels, where the page has other words than the comparison.
        compared: The axis along which `difference` compares a cell with the baseline; needed if
            the comparison has several axes.
        best_first: True if the rows are ordered by accuracy.
        backticks: True if labels without words of their own are written as code.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    across: str = ""
    where: Mapping[str, str] = field(default_factory=dict)
    without: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    compared: str = ""
    best_first: bool = False
    backticks: bool = False

    def label(self, label: str) -> str:
        """Returns a label as the page writes it."""
        return self.names.get(label, f"`{label}`" if self.backticks else label)


def _difference(cell: Summary, comparison: Report, layout: Layout) -> str:
    """Returns the difference from the baseline, paired by seed; empty for the baseline itself."""
    along = layout.compared or comparison.axes[0]
    for difference in (one for one in comparison.differences if one.axis == along):
        if {**difference.others, difference.axis: difference.label} == dict(cell.labels):
            sign = "+" if difference.accuracy.mean >= 0 else ""
            return f"{sign}{difference.accuracy}"
    return ""


def _message(cell: Summary, comparison: Report, _: Layout) -> str:
    """Returns the size of a client's message in the last round in kB, as the mean over the runs."""
    sizes = []
    for record in comparison.records:
        if record.labels == cell.labels and record.folder is not None:
            last = (record.folder / ROUNDS).read_text(encoding="utf-8").splitlines()[-1]
            line = json.loads(last)
            sizes.append(line["uplink_bytes"] / len(line["participants"]) / 1000)
    return f"{mean(sizes):,.1f}"


FIGURES: Mapping[str, Callable[[Summary, Report, Layout], str]] = {
    "accuracy": lambda cell, *_: str(cell.accuracy),
    "difference": _difference,
    "trained": lambda cell, *_: f"{cell.trainable:,}",
    "message": _message,
    "megabytes": lambda cell, *_: f"{cell.sent / 1e6:,.1f}",
    "sent": lambda cell, *_: readable_bytes(cell.sent),
    "to target": lambda cell, *_: "" if not cell.to_target else f"{cell.to_target.mean / 1e6:,.1f}",
    "saving": lambda cell, *_: f"{cell.saving:.1f}x",
    "saving with flower": lambda cell, *_: f"{cell.saving_with_flower:.1f}x",
    "seconds": lambda cell, *_: f"{cell.seconds:.0f}",
    "gap": lambda cell, *_: str(cell.aggregation_error or ""),
}


def rows_of(comparison: Report, layout: Layout, head: str) -> list[str]:
    """Returns the rows of a table.

    Args:
        comparison: The comparison.
        layout: How the table is made.
        head: The head of the table on the page.

    Raises:
        UserError: If the layout names an unknown axis or figure, or if the columns of the head are
            not the labels that the comparison has on the axis `across`.
    """
    axes = [axis.strip() for entry in layout.rows for axis in entry.split(",")]
    for axis in (*axes, *layout.where, *filter(None, [layout.across, layout.compared])):
        if axis not in comparison.axes:
            raise unknown("axis of the comparison", axis, comparison.axes)
    for figure in layout.columns:
        if figure not in FIGURES:
            raise unknown("figure", figure, FIGURES)
    if "difference" in layout.columns and len(comparison.axes) > 1 and not layout.compared:
        raise UserError(f"several axes: expected the key compared, one of {comparison.axes}")
    cells = [
        cell
        for cell in comparison.summaries
        if all(cell.labels.get(axis) == label for axis, label in layout.where.items())
        and layout.without not in cell.labels.values()
    ]
    for cell in cells:
        if cell.accuracy is not None and cell.problems:
            raise UserError(f"{_begin(cell, layout)}: some seeds have no result: {cell.problems}")
    if layout.best_first:
        cells.sort(key=lambda cell: -cell.accuracy.mean if cell.accuracy else 0.0)
    if layout.across:
        return _pivoted(cells, layout, head)
    for cell in cells:
        if cell.accuracy is None:
            raise UserError(f"{_begin(cell, layout)}: no run has a result: {cell.problems}")
    return [
        _line(
            [*_begin(cell, layout), *(FIGURES[f](cell, comparison, layout) for f in layout.columns)]
        )
        for cell in cells
    ]


def _pivoted(cells: list[Summary], layout: Layout, head: str) -> list[str]:
    """Returns rows with the accuracy of several cells each."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for cell in cells:
        row = found.setdefault(tuple(_begin(cell, layout)), {})
        row[layout.label(cell.labels[layout.across])] = str(cell.accuracy or REFUSED)
    columns = cells_of(head)[len(layout.rows) :]
    for row in found.values():
        if set(row) != set(columns):
            raise UserError(f"the head has the columns {columns}, the comparison has {list(row)}")
    return [_line([*begin, *(row[column] for column in columns)]) for begin, row in found.items()]


def _begin(cell: Summary, layout: Layout) -> list[str]:
    """Returns the labels with which the row of a cell begins."""
    return [
        ", ".join(layout.label(cell.labels[axis.strip()]) for axis in entry.split(","))
        for entry in layout.rows
    ]


def _line(texts: list[str]) -> str:
    return f"| {' | '.join(texts)} |"


def cells_of(line: str) -> list[str]:
    """Returns the cells of a line of a table.

    Example:
        >>> cells_of("| method | % |")
        ['method', '%']
    """
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def printed_rows(output: str, number: int, head: str) -> list[str]:
    r"""Returns the rows of a table that a command printed.

    Args:
        output: What the command printed.
        number: The number of the table in the output, from 0.
        head: The head of the table on the page.

    Raises:
        UserError: If the output has fewer tables, or the table has another number of columns.

    Example:
        >>> printed_rows("time\n| n | % |\n|--:|--:|\n| 1 | 50 |\n", 0, "| n | share |")
        ['| 1 | 50 |']
    """
    lines = output.splitlines()
    begins = [row + 1 for row, line in enumerate(lines) if SEPARATOR.match(line)]
    if number >= len(begins):
        raise UserError(f"the command printed {len(begins)} tables; table {number} was expected")
    begin = begins[number]
    if len(cells_of(lines[begin - 2])) != len(cells_of(head)):
        raise UserError(f"the page has the head {head}; the command printed {lines[begin - 2]}")
    end = next((n for n in range(begin, len(lines)) if not lines[n].startswith("|")), len(lines))
    return lines[begin:end]
