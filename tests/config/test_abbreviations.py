"""Other names of settings, flags and values: each leads to one that exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_vitlora import config
from fl_vitlora.command_line.flags import FLAGS as SETTING_FLAGS
from fl_vitlora.command_line.parser import make_parser
from fl_vitlora.config.grid import read_grid
from fl_vitlora.errors import UserError, abbreviations
from fl_vitlora.errors.abbreviations import meant

KNOWN = config.paths()
PARSER = make_parser()
FLAGS = PARSER._option_string_actions
OTHERS = [(path, other) for path, text in abbreviations.SETTINGS.items() for other in text.split()]


def test_every_abbreviation_leads_to_a_setting_or_flag_that_exists() -> None:
    assert [path for path in abbreviations.SETTINGS if path not in KNOWN] == []
    assert [flag for flag in abbreviations.FLAGS if flag not in FLAGS] == []


def test_no_abbreviation_stands_for_two_settings_without_saying_so() -> None:
    for path, other in OTHERS:
        assert path in meant(other, KNOWN), other
        assert len(meant(other, KNOWN)) <= 2, other


def test_no_abbreviation_is_a_setting_itself() -> None:
    assert [other for _, other in OTHERS if other in KNOWN] == []


@pytest.mark.parametrize("form", ["--set", "flag", "file", "axis", "inner axis"])
def test_an_abbreviation_is_answered_with_the_setting_wherever_it_stands(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, other in OTHERS:
        if form == "flag" and f"--{other}" in FLAGS:
            continue
        flag = next((flag for flag, entry in SETTING_FLAGS.items() if entry.path == path), "")
        told = flag or f"--set {path}=VALUE" if form == "flag" else repr(path)
        assert told.removesuffix("'") in answer(form, other, tmp_path, capsys), other


def answer(form: str, name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Uses a name where a setting is expected, and returns what is said."""
    trees: dict[str, dict[str, Any]] = {
        "axis": {"compare": {name: [1, 2]}},
        "inner axis": {"compare": {"where": {"here": {name: 1}}}},
    }
    if form == "flag":
        with pytest.raises(SystemExit):
            PARSER.parse_args([f"--{name.replace('_', '-')}", "1"])
        return capsys.readouterr().err
    with pytest.raises(UserError) as caught:
        if form == "--set":
            config.load(None, {name: 1})
        elif form == "file":
            (place / "one.yaml").write_text(f"{name}: 1\n")
            config.load(str(place / "one.yaml"))
        else:
            read_grid(trees[form], {})
    return str(caught.value)
