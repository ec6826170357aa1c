"""Every mistake is one line that names it, exit code 2, and no trace: hundreds are generated."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import simulate
from fl_vitlora import config
from fl_vitlora.errors import UserError
from tests.mistakes import (
    ANY,
    FAMILIES,
    FILE,
    ROOT,
    SETTINGS,
    Mistake,
    unknown_sources,
    wrong_values,
)

pytestmark = pytest.mark.slow

EXAMPLES = 60  # of each family
VALUES = 10  # of each setting, all wrong
PROCESSES = 14
WATCHDOG = 300  # seconds; how long a mistake takes is measured by benchmarks/speed/start_up.py

generated = functools.partial(
    settings, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with nothing in it but a run folder that is in use; and no Ray to be had."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "used").mkdir()
    (folder / "used" / "result.json").write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("a mistake was taken for an experiment, and Ray started")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("ray.init", refuse)
        yield folder


@contextlib.contextmanager
def written(mistake: Mistake) -> Iterator[None]:
    """Puts the file of a mistake into the working folder, and looks what is there afterwards."""
    if mistake.file is not None:
        Path(FILE).write_bytes(mistake.file)
    before = everything()
    try:
        yield
        assert everything() == before
    finally:
        Path(FILE).unlink(missing_ok=True)


def everything() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def typed(mistake: Mistake) -> tuple[object, str, str]:
    """Runs the program in this process; returns its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            simulate.main(mistake.argv)
        except SystemExit as ended:
            return ended.code, out.getvalue(), err.getvalue()
    return None, out.getvalue(), err.getvalue()


def expect_one_line(mistake: Mistake, code: object, answer: str) -> None:
    assert code == 2, answer
    assert len(answer.splitlines()) == 1, answer
    assert answer.startswith("simulate.py: ")
    assert len(answer) < 1200
    assert "Traceback" not in answer
    assert "usage:" not in answer
    assert any(told in answer for told in mistake.told), (mistake.told, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mistake_is_one_line_and_leaves_no_trace(family: str) -> None:
    @generated(max_examples=EXAMPLES)
    @given(FAMILIES[family])
    def holds(mistake: Mistake) -> None:
        with written(mistake):
            code, out, answer = typed(mistake)
        expect_one_line(mistake, code, answer)
        assert out == ""

    holds()


@pytest.mark.parametrize("path", SETTINGS)
def test_a_wrong_value_is_one_line_that_names_its_setting(path: str) -> None:
    @generated(max_examples=VALUES)
    @given(wrong_values(SETTINGS[path]))
    def holds(mistake: Mistake) -> None:
        with written(mistake):
            code, out, answer = typed(mistake)
        expect_one_line(mistake, code, answer)
        assert out == ""

    holds()


@generated(max_examples=EXAMPLES)
@given(unknown_sources())
def test_what_is_found_out_beside_the_preparations_is_one_line_too(mistake: Mistake) -> None:
    with written(mistake):
        code, _, answer = typed(mistake)
    expect_one_line(mistake, code, answer)


@generated(max_examples=PROCESSES)
@given(ANY)
def test_a_process_of_its_own_says_the_same(mistake: Mistake) -> None:
    assume(all(can_be_typed(word) for word in mistake.argv))
    with written(mistake):
        done = subprocess.run(
            [sys.executable, str(ROOT / "simulate.py"), *mistake.argv],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=WATCHDOG,
            check=False,
        )
    expect_one_line(mistake, done.returncode, done.stderr)
    assert done.stdout == ""


MARKS = "{}[]&*!:,- \n'\"0x1.e_<?|>%@#ab"  # of which YAML is made


def can_be_typed(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


@generated(max_examples=200)
@given(st.binary(max_size=60) | st.text(MARKS, max_size=40).map(str.encode))
def test_any_bytes_are_an_experiment_or_a_mistake(content: bytes) -> None:
    Path(FILE).write_bytes(content)
    with contextlib.suppress(UserError):
        config.load(FILE)
    Path(FILE).unlink()


def test_hundreds_of_different_mistakes_are_made() -> None:
    made: set[Mistake] = set()

    @generated(max_examples=300)
    @given(ANY)
    def gather(mistake: Mistake) -> None:
        made.add(mistake)

    gather()
    assert len(made) >= 200
