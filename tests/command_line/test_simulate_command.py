"""`fl-vitlora simulate`: the simulation for users who installed only the package."""

from __future__ import annotations

import pytest

from fl_vitlora import command_line
from fl_vitlora.command_line import tools


def printed(program, words, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        program(words)
    output = capsys.readouterr()
    return int(ended.value.code or 0), output.out, output.err


@pytest.mark.parametrize(
    "words", [["--help"], ["--help-all"], ["--clients", "0"], ["--strategy", "fedprxo"]]
)
def test_it_does_what_the_simulation_does(words, capsys: pytest.CaptureFixture[str]) -> None:
    expected = printed(command_line.main, words, capsys)
    assert printed(tools.main, ["simulate", *words], capsys) == expected


def test_the_help_of_the_program_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = printed(tools.main, ["--help"], capsys)
    assert code == 0
    assert "simulate" in out
