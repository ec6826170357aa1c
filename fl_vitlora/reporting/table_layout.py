"""Prints tables that fit a screen of 80 columns, without breaking words.

A table that is too wide is split into several tables, one below the other. Each part of a split
table repeats the columns that name the rows. If the names of the rows are too wide, rows have
numbers instead of names, and a legend above the table explains the numbers.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

Rows = Sequence[Sequence[str]]

GAP = 2  # spaces between two columns of a table
USUAL_WIDTH, LEAST_WIDTH = 80, 40


def screen() -> Console:
    """Returns a console that prints to the screen.

    The environment variable ``COLUMNS`` sets the width of the console. Without ``COLUMNS``, the
    console has the width of the terminal, or 80 columns if there is no terminal.
    """
    console = Console()
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        width = int(given)
    elif console.is_interactive:
        width = shutil.get_terminal_size((USUAL_WIDTH, 24)).columns
    else:
        width = USUAL_WIDTH
    if console.is_interactive and width == console.width:
        return console  # this console adapts if the terminal's width changes
    return Console(width=max(width, LEAST_WIDTH))


@dataclass(frozen=True)
class Folded:
    """A table that fits the screen.

    Attributes:
        legend: For each row, a pair of its number and its name. The legend is empty if the parts
            contain the names.
        parts: The tables into which the table was split, each with a header row.
        texts: The number of columns at the left that name the rows.
    """

    legend: Sequence[tuple[str, str]]
    parts: Sequence[Rows]
    texts: int


def fold(rows: Rows, texts: int, width: int) -> Folded:
    """Splits a table into parts that fit the screen.

    Args:
        rows: The texts of all cells. The first of the rows is the header.
        texts: The number of columns at the left that name the rows.
        width: The width of the screen in characters.

    Returns:
        The parts, with a legend if the names of the rows are too wide.

    Example:
        >>> rows = [["method", "accuracy", "bytes"], ["lora", "95.6", "24.0 MB"]]
        >>> fold(rows, texts=1, width=80).parts == [rows]
        True
        >>> for part in fold(rows, texts=1, width=18).parts:
        ...     print(part)
        [['method', 'accuracy'], ['lora', '95.6']]
        [['method', 'bytes'], ['lora', '24.0 MB']]
    """
    widths = [max(map(cell_len, column)) + GAP for column in zip(*rows, strict=True)]
    legend: list[tuple[str, str]] = []
    if sum(widths[:texts]) + max(widths[texts:], default=0) - GAP > width:
        legend = [
            (str(number), ", ".join(text for text in row[:texts] if text))
            for number, row in enumerate(rows[1:], start=1)
        ]
        numbers = ["row", *(number for number, _ in legend)]
        rows = [[n, *row[texts:]] for n, row in zip(numbers, rows, strict=True)]
        widths, texts = [max(map(len, numbers)) + GAP, *widths[texts:]], 1
    parts = [
        [[*row[:texts], *(row[column] for column in chosen)] for row in rows]
        for chosen in _groups(widths, texts, width)
    ]
    return Folded(legend=legend, parts=parts, texts=texts)


def _groups(widths: Sequence[int], texts: int, width: int) -> Iterator[list[int]]:
    """Yields groups of columns that fit on the screen next to the columns with row names."""
    free = width + GAP - sum(widths[:texts])
    group: list[int] = []
    for column in range(texts, len(widths)):
        if group and sum(widths[c] for c in [*group, column]) > free:
            yield group
            group = []
        group.append(column)
    yield group


def table_lines(rows: Rows, texts: int) -> Iterator[str]:
    """Yields the lines of a table.

    The first `texts` columns of the table are aligned to the left, the other columns to the right.

    Example:
        >>> list(table_lines([["method", "accuracy"], ["lora", "95.6"]], texts=1))
        ['method  accuracy', 'lora        95.6']
    """
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell + " " * (wide - cell_len(cell))
            if column < texts
            else " " * (wide - cell_len(cell)) + cell
            for column, (cell, wide) in enumerate(zip(row, widths, strict=True))
        ]
        yield (" " * GAP).join(cells).rstrip()


def print_table(console: Console, rows: Rows, texts: int, title: str = "") -> None:
    """Prints a table with its title. A table that is too wide is printed in several parts."""
    if title:
        print_wrapped(console, Text(title, style="italic"))
    folded = fold(rows, texts, console.width)
    for number, name in folded.legend:
        print_named(console, {number: Text(name)}, indent=cell_len(str(len(folded.legend))) + GAP)
    for position, part in enumerate(folded.parts):
        if position or folded.legend:
            console.print()
        head, *lines = table_lines(part, folded.texts)
        console.print(Text(head, style="bold"), soft_wrap=True)
        for line in lines:
            console.print(Text(line), soft_wrap=True)


def print_named(console: Console, rows: Mapping[str, Text], indent: int = 0) -> None:
    """Prints each name, and next to it its text. A long text is wrapped between words."""
    indent = indent or max(map(cell_len, rows)) + GAP
    for name, text in rows.items():
        for position, line in enumerate(wrapped(text, max(console.width - indent, 1))):
            before = name.ljust(indent) if position == 0 else " " * indent
            console.print(Text(before) + line, soft_wrap=True)


def print_wrapped(console: Console, text: Text) -> None:
    """Prints a text that is wrapped only between words, so that no path is broken."""
    for line in wrapped(text, console.width):
        console.print(line, soft_wrap=True)


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """Yields the lines of a text that is wrapped between words.

    A word that is longer than `width` gets a line of its own.

    Example:
        >>> [line.plain for line in wrapped(Text("a long/path/to/it and more"), width=8)]
        ['a', 'long/path/to/it', 'and more']
    """
    for paragraph in text.split("\n", allow_blank=True):
        breaks, begin = [], 0
        for word in re.finditer(r"\S+", paragraph.plain):
            if word.start() > begin and cell_len(paragraph.plain[begin : word.end()]) > width:
                begin = word.start()
                breaks.append(begin)
        for line in paragraph.divide(breaks):
            line.rstrip()
            yield line
