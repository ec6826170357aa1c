"""The checks of an author's own predictor, observer and attack, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import simulate

GOOD = """
class Mirrored:
    adapts = False

    def __call__(self, model, images):
        return (model(images) + model(images.flip(-1))) / 2


class Counts:
    seen = 0

    def observe(self, sight):
        self.seen += len(sight.updates)
"""
ATTACK = """
from dataclasses import dataclass

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.views import UserView


@dataclass(frozen=True, kw_only=True)
class Certainty(Attack):
    adversaries = (UserView,)
    goal = "How certain a model is."
    figures = ("certainty",)

    def guess(self, view):
        return float(view.logits.double().softmax(-1).amax(-1).sum())

    def score(self, guess, truth):
        return [Figure(name="certainty", value=guess, unit="")]
"""
BAD = """
class Sharp:
    adapts = False

    def __call__(self, model, images):
        model.head.weight.data.mul_(2)
        return model(images)


class Clearing:
    def observe(self, sight):
        sight.model.clear()
"""


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs the command line, and returns its exit code and what it printed."""
    try:
        simulate.main(list(arguments))
        code: object = 0
    except SystemExit as exit_:
        code = exit_.code
    assert isinstance(code, int)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


@pytest.mark.parametrize(
    ("flag", "good", "broken"),
    [
        ("--check-predictor", "Mirrored", "after the answer the model differs in"),
        ("--check-observer", "Counts", "single updates: it changes model"),
    ],
)
def test_a_file_is_checked_and_told_what_it_breaks(
    flag: str, good: str, broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, source, code, part in (
        ("good", GOOD, 0, f"checked_good:{good}"),
        ("bad", BAD, 1, broken),
    ):
        file = tmp_path / f"{name}.py"
        file.write_text(source, encoding="utf-8")
        found, text = told(capsys, flag, str(file))
        assert found == code, text
        assert part in text


def test_an_attack_is_checked_and_told_what_it_breaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "mine.py"
    file.write_text(ATTACK, encoding="utf-8")
    code, text = told(capsys, "--check-attack", str(file))
    assert code == 0, text
    assert "checked_mine:Certainty" in text
    assert "1 rules were not tested" in text  # it attacks no ciphertext
    file.write_text(ATTACK.replace("a model is.", "a model is"), encoding="utf-8")
    code, text = told(capsys, "--check-attack", str(file))
    assert code == 1
    assert "`goal` must be one sentence" in text
    assert told(capsys, "--check-attack", "fl_vitlora.attacks.contract:Attack")[0] == 2


def test_a_shipped_class_is_checked_by_its_name(capsys: pytest.CaptureFixture[str]):
    assert told(capsys, "--check-predictor", "plain")[0] == 0


@pytest.mark.parametrize(
    ("name", "source", "part"),
    [
        ("none.py", None, "no such file"),
        (
            "two.py",
            GOOD + GOOD.replace("Counts", "Others"),
            "in this file, found ['Counts', 'Others']",
        ),
        ("empty.py", "", "expected one class with `observe` in this file, found []"),
        ("wrong.py", "1 / 0", "cannot be imported: ZeroDivisionError"),
        (
            "needs.py",
            GOOD + "    def __init__(self, size): ...",
            "no instance of the class Counts can be made without arguments: TypeError",
        ),
        ("a-b.py", GOOD, "rename the file to a Python name"),
        ("nowhere.observers:Mine", None, "cannot be imported: ModuleNotFoundError"),
        ("fl_vitlora.federation.observer:Observr", None, "Observr"),
        ("mine", None, "expected a Python file or package.module:Class"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_one_line(
    name: str, source: str | None, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    place = tmp_path / name
    if source is not None:
        place.write_text(source, encoding="utf-8")
    code, text = told(capsys, "--check-observer", str(place) if name.endswith(".py") else name)
    assert code == 2
    assert part in text
    assert len(text.splitlines()) == 1


def test_a_check_runs_nothing_beside_it(capsys: pytest.CaptureFixture[str]):
    code, text = told(capsys, "--check-observer", "mine.py", "--seeds", "0-2")
    assert (code, "--check-observer runs nothing else" in text) == (2, True)
