"""Reads a tutorial as a person does: files to write, commands to type, and lines that then appear.

A block with a title and a language other than sh is a file. A block of sh is typed. If its title
begins with "terminal", it is a program that stays up; if it begins with "takes", it needs more time
or other hardware than a test has. A block of text has lines that the commands above it print.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[+-]?\d[\d,.:]*")
NAME = re.compile(r"\b[0-9a-f]{16}\b")
RULE = re.compile(r"-{2,}")
UNIT = re.compile(r"\b0 (ms|s|min|B|kB|MB|GB)\b")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code on a page.

    Attributes:
        language: The word behind the fence.
        title: The title of the block; empty if it has none.
        text: The lines of the block.
    """

    language: str
    title: str
    text: str

    @property
    def is_file(self) -> bool:
        return self.language not in ("sh", "text")

    @property
    def stays_up(self) -> bool:
        return self.title.startswith("terminal")

    @property
    def is_long(self) -> bool:
        return self.title.startswith("takes")


def blocks(page: Path) -> list[Block]:
    """Returns the blocks of a page that have a language, in their order."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(language=language, title=title, text=text) for language, title, text in found]


def masked(line: str) -> str:
    """Returns a line without what differs from run to run: numbers, their units, and names of keys.

    Example:
        >>> masked("uplink    24.0 MB"), masked("| a | 96.1 ± 0.5 |")
        ('uplink 0 unit', '| a | 0 ± 0 |')
    """
    line = RULE.sub("-", NUMBER.sub("0", NAME.sub("0", line)))
    return UNIT.sub("0 unit", " ".join(line.split()))


def missing(shown: str, printed: str) -> list[str]:
    """Returns the lines of a page that the commands did not print; "..." stands for any lines."""
    found = {masked(line) for line in printed.splitlines()}
    wanted = [line for line in shown.splitlines() if line.strip() not in ("", "...")]
    return [line for line in wanted if masked(line) not in found]
