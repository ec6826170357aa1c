"""Reads the list of all tables: the command that makes a table, and the files that decide it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.tables.rendering import Layout
from fl_vitlora.config.settings import from_mapping
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.errors import UserError, unknown

ROOT = Path(__file__).resolve().parents[2]
LIST = Path("benchmarks/tables/tables.yaml")
COMMITTED = ("benchmarks/", "configs/")  # other files that a command names are made by commands
TRAINING = "training"  # the set of files that decides what `simulate.py` trains


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table of the pages.

    A table is made in one of four ways: from the folder of a comparison (`layout`), from a table
    that the command prints (`printed`), by the command itself, which writes the page (`itself`), or
    by hand from what the command prints (`by_hand`).

    Attributes:
        command: The command that makes the figures, as it stands beside the table.
        code: The sets of files, or the files and folders, whose content decides the figures.
        layout: How the table is made from a comparison.
        printed: The number of the table among those that the command prints, from 0.
        itself: True if the command writes the table into its page.
        by_hand: What a person does with the output of the command.
        needs: What this repository does not have, for example weights; empty if nothing is needed.
        mark: The text of the mark above the table; empty for ``table: NAME``.
    """

    command: str
    code: tuple[str, ...] = (TRAINING,)
    layout: Mapping[str, Any] | None = None
    printed: int | None = None
    itself: bool = False
    by_hand: str = ""
    needs: str = ""
    mark: str = ""

    @property
    def words(self) -> list[str]:
        """Returns the words of the command."""
        return shlex.split(self.command)

    @property
    def why_not(self) -> str:
        """Returns the reason why no program can make this table alone; empty if one can."""
        if self.needs:
            return f"it needs {self.needs}"
        return f"a person makes it from the output: {self.by_hand}" if self.by_hand else ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All tables of the pages, and sets of files by name."""

    tables: Mapping[str, Entry]
    code: Mapping[str, tuple[str, ...]]

    def table(self, name: str) -> Entry:
        """Returns a table by its name.

        Raises:
            UserError: If there is no table with this name.
        """
        if name not in self.tables:
            raise unknown("table", name, self.tables)
        return self.tables[name]

    def mark(self, name: str) -> str:
        """Returns the text of the mark above a table."""
        return self.table(name).mark or f"table: {name}"

    def files(self, name: str, root: Path = ROOT) -> list[str]:
        """Returns the files and folders that decide a table, relative to the repository.

        These are the files that the command names, and those of its `code`.

        Raises:
            UserError: If the list names a file that does not exist.
        """
        entry = self.table(name)
        words = entry.words
        found = [word for word in words if word.startswith(COMMITTED)]
        for before, module in pairwise(words):
            if before == "-m":
                found.append(_path_of(module, root))
        for item in entry.code:
            found += self.code.get(item, (item,))
        for path in found:
            if not (root / path).exists():
                raise UserError(f"{LIST}: table {name}: there is no file or folder {path}")
        return sorted(set(found))


def _path_of(module: str, root: Path) -> str:
    """Returns the file or the folder of a module."""
    path = module.replace(".", "/")
    return path if (root / path).is_dir() else f"{path}.py"


def read_listing(root: Path = ROOT) -> Listing:
    """Reads the list of tables.

    Raises:
        UserError: If the list cannot be read, or if a table is made in no way, or in two ways.
    """
    tree = read_yaml(str(root / LIST))
    tables = {}
    for name, item in tree["tables"].items():
        entry = from_mapping(Entry, item, f"{LIST}: {name}.")
        ways = (entry.layout, entry.printed, entry.itself or None, entry.by_hand or None)
        if sum(way is not None for way in ways) != 1:
            raise UserError(
                f"{LIST}: table {name}: expected one of layout, printed, itself and by_hand"
            )
        if entry.layout is not None:
            layout_of(name, entry)
        tables[name] = entry
    return Listing(tables=tables, code={name: tuple(paths) for name, paths in tree["code"].items()})


def layout_of(name: str, entry: Entry) -> Layout:
    """Returns the layout of a table that is made from a comparison.

    Raises:
        UserError: If the layout has an unknown key.
    """
    return from_mapping(Layout, entry.layout, f"{LIST}: {name}.layout.")
