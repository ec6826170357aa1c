"""Text as GitHub shows it becomes text as Python-Markdown reads it, with links inside the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator

LINK = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r" *(```+|~~~+)")
ITEM = re.compile(r" *([*+-]|\d+\.) ")
DOCS = "docs/"
REPOSITORY = "repository/"


def place_of(path: str) -> str:
    """Returns the place in the site of a file of the repository.

    Args:
        path: The path of the file, relative to the root of the repository.

    Example:
        >>> place_of("docs/data.md"), place_of("deploy/README.md"), place_of("deploy/app.py")
        ('data.md', 'repository/deploy/README.md', 'repository/deploy/app.py.md')
    """
    if path.startswith(DOCS):
        return path.removeprefix(DOCS)
    return REPOSITORY + path + ("" if path.endswith(".md") else ".md")


def targets(markdown: str, path: str) -> Iterator[str]:
    """Yields the files of the repository to which a page links.

    Args:
        markdown: The text of the page.
        path: The path of the page in the repository.

    Example:
        >>> list(targets("[a](../deploy/app.py) [b](#here) [c](https://d.e)", "docs/data.md"))
        ['deploy/app.py']
    """
    for line, is_code in _lines(markdown):
        for match in () if is_code else LINK.finditer(line):
            if match[1] and not _is_elsewhere(match[1]):
                yield _resolved(match[1], path)


def with_site_links(markdown: str, path: str, place: str) -> str:
    """Returns a page whose links lead to pages of the site.

    Args:
        markdown: The text of the page.
        path: The path of the page in the repository.
        place: The place of the page in the site.

    Example:
        >>> with_site_links("[a](../deploy/README.md#x)", "docs/data.md", "data.md")
        '[a](repository/deploy/README.md#x)'
    """

    def moved(match: re.Match[str]) -> str:
        if not match[1] or _is_elsewhere(match[1]):
            return match[0]
        target = place_of(_resolved(match[1], path))
        return posixpath.relpath(target, posixpath.dirname(place)) + (match[2] or "")

    return _changed(markdown, lambda line: LINK.sub(moved, line))


def _changed(markdown: str, change: Callable[[str], str]) -> str:
    """Returns a page in which every line outside of fenced code is changed."""
    lines = _lines(markdown)
    return "\n".join(line if is_code else change(line) for line, is_code in lines)


def _is_elsewhere(link: str) -> bool:
    return "://" in link or link.startswith("mailto:")


def _resolved(link: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _lines(markdown: str) -> Iterator[tuple[str, bool]]:
    """Yields each line, and whether it belongs to fenced code."""
    fence = ""
    for line in markdown.split("\n"):
        opening = FENCE.match(line)
        yield line, bool(fence or opening)
        if fence:
            fence = "" if line.strip() == fence else fence
        elif opening:
            fence = opening[1]


def four_spaces(markdown: str) -> str:
    r"""Doubles the indentation inside of lists.

    GitHub wants what belongs to an item of a list to be indented by two spaces, and Python-Markdown
    wants four spaces.

    Example:
        >>> print(four_spaces("* one\n  * two\n\n    code"))
        * one
            * two
        <BLANKLINE>
                code
        >>> print(four_spaces("text\n\n    code"))
        text
        <BLANKLINE>
            code
    """
    lines, in_list, added = [], False, 0
    was_code = False
    for line, is_code in _lines(markdown):
        indent = len(line) - len(line.lstrip(" "))
        if ITEM.match(line) and not is_code:
            in_list = True
        elif line and not indent and not was_code:
            in_list = False
        if not (is_code and was_code):  # all lines of fenced code move as the first one
            added = indent if in_list else 0
        lines.append(" " * added + line if line else line)
        was_code = is_code
    return "\n".join(lines)
