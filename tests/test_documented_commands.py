"""Every command that is documented survives a shell, and the program takes it."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from fl_vitlora.command_line import arguments as reading
from fl_vitlora.command_line.help_pages import every_setting, one_screen
from fl_vitlora.command_line.parser import make_parser
from fl_vitlora.command_line.program import check_flags
from fl_vitlora.config.grid import Grid

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "strategies/*.md",
        "deploy/*.md",
        "benchmarks/**/*.md",
        "configs/**/*.yaml",
        "fl_vitlora/**/*.py",
        "strategies/*.py",
        "Makefile",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
PROGRAM = re.compile(r"python simulate\.py(?= )[^\n`\"]*")
SETTING = re.compile(r"--set [^\n`\"]*")
LITERALS = re.compile(r"\"\n\s*f?\"")  # between two literals of one text
CONTINUED = re.compile(r"\\\n[#\s]*")
SPECIAL = set("*?[](){}<>|;&$!~#^")  # bash or zsh reads one of them as something else than itself
PLACEHOLDER = re.compile(r"\b(NAME|FILE|FOLDER|PLACE|VALUE|PATH|AXIS|SEED|RUN)\b")


def documented(pattern: re.Pattern[str]) -> dict[str, str]:
    """Finds what is documented, by its place."""
    found = {}
    pages = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
    pages |= {"--help": one_screen(), "--help-all": every_setting()}
    for name, text in pages.items():
        joined = CONTINUED.sub(" ", LITERALS.sub("", text).replace("\\\\\n", "\\\n"))
        for match in pattern.finditer(joined):
            found[f"{name}: {match[0].strip()}"] = match[0].strip()
    return found


COMMANDS = {place: found for place, found in documented(PROGRAM).items() if "{" not in found}


def unquoted(command: str) -> str:
    """Returns what stands in no quotes, without comments."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|\\.", "", command)
    return re.sub(r"\s#.*", "", bare)


def test_commands_are_found_on_every_page() -> None:
    places = {place.partition(":")[0] for place in COMMANDS}
    assert {
        "README.md",
        "docs/communication.md",
        "configs/thousand_fold.yaml",
        "--help",
        "--help-all",
    } <= places
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("place", COMMANDS)
def test_a_shell_hands_a_command_on_as_it_is_written(place: str) -> None:
    command = COMMANDS[place]
    assert set(unquoted(command)) & SPECIAL == set(), command


def test_bash_finds_no_mistake_in_any_command() -> None:
    script = "\n".join(COMMANDS.values())
    subprocess.run(["bash", "-n", "-c", script], check=True, capture_output=True)


def test_a_setting_that_is_named_in_a_text_survives_a_shell_too() -> None:
    for place, setting in documented(SETTING).items():
        word = re.match(r"--set ('[^']*'|[^\s,;)\]]*)", re.sub(r"\{[^}]*\}", "", setting))
        assert word is not None
        assert set(unquoted(word[0])) & SPECIAL == set(), place


@pytest.mark.parametrize("place", COMMANDS)
def test_the_program_takes_a_command_as_it_is_written(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(COMMANDS[place], comments=True)[2:]
    if words[0] in ("--help", "--help-all", "--version") or any(map(PLACEHOLDER.search, words)):
        return
    arguments = make_parser().parse_args(words)
    check_flags(vars(arguments))
    read = what_it_asks_for(arguments)
    assert read is not None


def what_it_asks_for(arguments: argparse.Namespace) -> object:
    """Reads a command as the program does before it runs anything."""
    if arguments.check_strategy is not None:
        return reading.read_strategy(arguments)
    if arguments.search is not None:
        return reading.read_plan(arguments)
    grid: Grid | None = reading.read_comparison(arguments)
    return grid or reading.read_config(arguments)
