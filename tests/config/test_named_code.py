"""Code that a user names is imported by its module and name, or refused in one line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import pytest

from fl_vitlora.config.named_code import check_whole, code_named, is_class, subclass_of
from fl_vitlora.errors import UserError

HERE = "tests.config.test_named_code"


class Shape(ABC):
    """A kind of class that users write."""

    @abstractmethod
    def surface(self) -> float: ...


class Square(Shape):
    def surface(self) -> float:
        return 1.0


class Misspelt(Shape):
    def surfce(self) -> float:  # codespell:ignore
        return 1.0


class Stranger:
    """A class of another kind."""


@pytest.mark.parametrize("name", ["a:B", "a.b:C", "_a.b1:C2"])
def test_a_module_and_a_name_are_recognised(name: str):
    assert is_class(name)


@pytest.mark.parametrize("name", ["", "a", "a:", ":B", "a b:C", "a/b:C", "a.:B", "a:B:C", "a:b.C"])
def test_other_words_are_no_module_and_name(name: str):
    assert not is_class(name)


def test_the_object_that_is_named_is_found():
    assert code_named(f"{HERE}:Square", "shape", subclass_of(Shape)) is Square
    assert code_named(f"{HERE}:HERE", "text", lambda thing: isinstance(thing, str)) == HERE


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            f"{HERE}:Sqare",  # codespell:ignore
            f"unknown shape in {HERE} 'Sqare'; did you mean 'Square'",  # codespell:ignore
        ),
        (f"{HERE}:Stranger", f"unknown shape in {HERE} 'Stranger'"),
        (f"{HERE}:Shape", f"unknown shape in {HERE} 'Shape'"),
        ("decimal:Decimal", "unknown shape in decimal 'Decimal' (there are no choices)"),
        ("nowhere.at_all:Square", "shape 'nowhere.at_all:Square' cannot be imported: ModuleNotF"),
    ],
)
def test_what_is_not_found_is_answered_with_the_kind_and_the_nearest_name(name: str, told: str):
    with pytest.raises(UserError) as refused:
        code_named(name, "shape", subclass_of(Shape))
    assert str(refused.value).startswith(told)


def test_only_likely_names_are_suggested():
    with pytest.raises(UserError) as refused:
        code_named(f"{HERE}:Shap", "shape", lambda thing: True, lambda thing: thing is Square)
    assert str(refused.value).endswith("(choices: Square)")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("raise ValueError('one\\ntwo')", "ValueError: one two"),
        ("class A(", "SyntaxError: "),
    ],
)
def test_code_that_fails_is_refused_in_one_line(
    code: str, cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "failing_code.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as refused:
        code_named("failing_code:A", "shape", subclass_of(Shape))
    told = str(refused.value)
    assert told.startswith(f"shape 'failing_code:A' cannot be imported: {cause}")
    assert "\n" not in told


def test_a_misspelt_method_is_named_with_the_method_that_is_lacking():
    check_whole(Square, "shape x:Square")
    with pytest.raises(UserError) as refused:
        check_whole(Misspelt, "shape x:Misspelt")
    told = str(refused.value)
    assert told.startswith("shape x:Misspelt: class Misspelt lacks the method surface")
    assert told.endswith("did you misspell it as 'surfce'?")
