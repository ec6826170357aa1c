"""Finds the tables of the pages by the marks above them, and replaces a table by a new one.

A mark is a comment, which no reader of the page sees, in the line above the head of its table:

    <!-- table: default_job -->
    | trained | accuracy |
    |---|--:|
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import write_atomically

PAGES = ("README.md", "docs/**/*.md", "strategies/*.md", "deploy/*.md")
MARK = re.compile(r"^<!-- (.+) -->$")
OF_FIGURES = re.compile(r"^\|[-: |]*--:[-: |]*\|$")  # the columns of figures are aligned right


def pages(root: Path) -> list[Path]:
    """Returns the pages that may have tables."""
    return sorted({path for pattern in PAGES for path in root.glob(pattern)})


def unmarked(root: Path) -> list[str]:
    """Returns the place of each table of figures without a mark, as ``PAGE:LINE: HEAD``."""
    found = []
    for page in pages(root):
        lines = page.read_text(encoding="utf-8").splitlines()
        for row, line in enumerate(lines):
            if OF_FIGURES.match(line.replace(" ", "")) and not MARK.match(lines[row - 2]):
                found.append(f"{page.relative_to(root)}:{row}: {lines[row - 1]}")
    return found


def marks(root: Path) -> Iterator[tuple[str, Path]]:
    """Yields the text of each mark above a table, and its page."""
    for page in pages(root):
        lines = page.read_text(encoding="utf-8").splitlines()
        for line, after in pairwise(lines):
            if (found := MARK.match(line)) and after.startswith("|"):
                yield found[1], page


def page_of(mark: str, root: Path) -> Path:
    """Returns the page that has a mark.

    Raises:
        UserError: If no page has this mark, or if several marks are equal.
    """
    found = [page for text, page in marks(root) if text == mark]
    if len(found) != 1:
        raise UserError(f"<!-- {mark} -->: expected this mark once, found it {len(found)} times")
    return found[0]


def table_in(text: str, mark: str) -> list[str]:
    """Returns the lines of a table in the text of a page."""
    _, _, after = text.partition(f"<!-- {mark} -->\n")
    lines = after.splitlines()
    length = next((n for n, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return lines[:length]


def replace(page: Path, mark: str, rows: list[str]) -> None:
    """Replaces the rows of a table below its head, which stays as it is.

    Args:
        page: The page.
        mark: The mark above the table.
        rows: The new rows, without the two lines of the head.

    Raises:
        UserError: If a row has another number of columns than the head.
    """
    text = page.read_text(encoding="utf-8")
    old = table_in(text, mark)
    for row in rows:
        if row.count("|") != old[0].count("|"):
            raise UserError(f"{page}: {mark}: the new row {row} does not fit the head {old[0]}")
    before, line, after = text.partition(f"<!-- {mark} -->\n")
    rest = after.removeprefix("\n".join(old))
    write_atomically(page, "".join([before, line, "\n".join([*old[:2], *rows]), rest]))
