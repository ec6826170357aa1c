"""The page with the help of all commands, as the programs print it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fl_vitlora.command_line import tools
from fl_vitlora.command_line.help_pages import every_setting, one_screen

PLACE = "reference/commands.md"
WIDTH = "100"  # of the help that argparse wraps
INTRODUCTION = """# Commands

The package installs one program, `fl-vitlora`. Its command `fl-vitlora simulate` takes the same
flags as `python simulate.py` in a checkout. Below is the help that the programs print.

Exit code 0 means success, 1 that a run, a check or a bound has failed, 2 that the user must correct
something, and 130 that the program was interrupted.
"""


def pages() -> dict[str, str]:
    """Returns the text of the page, by its place in the site."""
    parts = [INTRODUCTION, *_sections()]
    return {PLACE: "\n".join(parts)}


def _sections() -> Iterator[str]:
    yield _section("python simulate.py --help", one_screen())
    with _columns(WIDTH):
        for command, text in helps(tools.make_parser()).items():
            yield _section(f"{command} --help", text)
    yield _section("python simulate.py --help-all", every_setting())


def _section(command: str, text: str) -> str:
    return f"## `{command}`\n\n```text\n{text.rstrip()}\n```\n"


def helps(parser: argparse.ArgumentParser) -> Mapping[str, str]:
    """Returns the help of a program and of all its commands, by the words that call them."""
    found = {parser.prog: parser.format_help()}
    for action in parser._actions:  # argparse has no public list of commands
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                if name != tools.SIMULATE:  # its help is that of simulate.py
                    found |= helps(below)
    return found


@contextmanager
def _columns(width: str) -> Iterator[None]:
    """Lets argparse wrap its help at a width that does not depend on the terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
