"""Tables that fit a screen of 80 columns, and a file or pipe, without a word being broken.

A table that is too wide becomes several, one below the other: each repeats the columns that name
its rows. Where these alone are too wide, rows get numbers, and a list tells what they stand for.
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

GAP = 2  # columns of the screen between two of a table
USUAL_WIDTH, LEAST_WIDTH = 80, 40


def screen() -> Console:
    """Opens the screen; ``COLUMNS`` tells its width, else the terminal, else it has 80 columns."""
    console = Console()
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        width = int(given)
    elif console.is_interactive:
        width = shutil.get_terminal_size((USUAL_WIDTH, 24)).columns
    else:
        width = USUAL_WIDTH
    if console.is_interactive and width == console.width:
        return console  # follows the terminal, should that become wider
    return Console(width=max(width, LEAST_WIDTH))


@dataclass(frozen=True)
class Folded:
    """A table that fits.

    Attributes:
        legend: What the numbers of rows stand for; empty where rows have their names.
        parts: Tables, each under a row of names.
        texts: How many of their first columns name the rows.
    """

    legend: Sequence[tuple[str, str]]
    parts: Sequence[Rows]
    texts: int


def fold(rows: Rows, texts: int, width: int) -> Folded:
    """Folds a table.

    Args:
        rows: Texts, under a row of names.
        texts: How many of the first columns name the rows.
        width: Width of the screen in characters.

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
    """Groups the columns behind those that name the rows, so that each group fits beside them."""
    free = width + GAP - sum(widths[:texts])
    group: list[int] = []
    for column in range(texts, len(widths)):
        if group and sum(widths[c] for c in [*group, column]) > free:
            yield group
            group = []
        group.append(column)
    yield group


def table_lines(rows: Rows, texts: int) -> Iterator[str]:
    """Lays out a table: names to the left, numbers to the right.

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
    """Prints a table, folded where it is too wide."""
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
    """Prints names, and what they have beside them; long texts are wrapped between words."""
    indent = indent or max(map(cell_len, rows)) + GAP
    for name, text in rows.items():
        for position, line in enumerate(wrapped(text, max(console.width - indent, 1))):
            before = name.ljust(indent) if position == 0 else " " * indent
            console.print(Text(before) + line, soft_wrap=True)


def print_wrapped(console: Console, text: Text) -> None:
    """Prints a text that is wrapped between words; a path keeps its letters together."""
    for line in wrapped(text, console.width):
        console.print(line, soft_wrap=True)


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """Breaks a text between words; a word that is longer than a line has one to itself.

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
