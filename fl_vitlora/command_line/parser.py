"""The parser of the command line.

If the user writes an unknown flag, the error message suggests the most similar flag.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from fl_vitlora import __version__, config
from fl_vitlora.command_line.exits import USER_MISTAKE, fail
from fl_vitlora.command_line.flags import FLAGS, OTHER_FLAGS
from fl_vitlora.command_line.help_pages import every_setting, one_screen
from fl_vitlora.errors.abbreviations import flags_meant, meant


class Parser(argparse.ArgumentParser):
    """A parser that reports a user's mistake in one line and suggests a flag that exists."""

    def format_help(self) -> str:
        """Returns the help page that fits one screen."""
        return one_screen()

    def error(self, message: str) -> NoReturn:
        """Prints argparse's error message with a suggestion, and ends the program with code 2."""
        words = message.removeprefix("unrecognized arguments: ").split()
        if not words:
            fail(f"{message}'' (see --help)", USER_MISTAKE)
        wrong = words[0]
        near = self._nearest(wrong.partition("=")[0]) if wrong.startswith("-") else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        if not wrong.startswith("-"):
            hint = "; to give several values use --compare, and for several seeds use --seeds"
        fail(f"{message}{hint} (see --help)", USER_MISTAKE)

    def _nearest(self, wrong: str) -> list[str]:
        """Returns suggestions for an unknown flag: flags, or settings that `--set` can set."""
        flag_of = {entry.path: flag for flag, entry in FLAGS.items()}
        paths = meant(wrong.lstrip("-"), config.paths())
        found = [flag_of.get(path) or f"--set {path}=VALUE" for path in paths]
        close = difflib.get_close_matches(wrong, self._option_string_actions, n=1)
        return found or flags_meant(wrong) or close


class _PrintEverySetting(argparse.Action):
    """The action of `--help-all`: prints every flag and every setting, and ends the program."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(every_setting(), end="")
        parser.exit()


def make_parser() -> Parser:
    """Returns a parser that knows all flags of the command line."""
    parser = Parser(prog="simulate.py", allow_abbrev=False)
    for flag, entry in FLAGS.items():
        switch: dict[str, Any] = {"action": "store_const", "const": "true"}
        takes = {"metavar": entry.value} if entry.value else switch
        parser.add_argument(flag, dest=entry.path, **takes)
    for flag, other in OTHER_FLAGS.items():
        named: dict[str, Any] = {"metavar": other.value} if other.value else {}
        parser.add_argument(flag, **named, **other.options)
    parser.add_argument("--help-all", action=_PrintEverySetting, nargs=0)
    parser.add_argument("--version", action="version", version=f"fl_vitlora {__version__}")
    return parser
