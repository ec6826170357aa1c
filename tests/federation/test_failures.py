"""What is told of an exception, in all forms in which it comes, is shortened to its cause."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from flwr.clientapp.client_app import ClientAppException

from fl_vitlora.errors import UserError
from fl_vitlora.federation.failures import Failure, first_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "unknown"),
        ("only this", "only this"),
        ("first\nlast", "first"),
        ("<class 'X'>:<'\nException X occurred. Message: no memory'>", "no memory"),
        ("\\nException X occurred. Message: told\\nafter", "told"),
        ("\nException X occurred. Message: " * 2 + "told twice", "told twice"),
        ("Message: none of Flower's", "Message: none of Flower's"),
        ("x" * 1000, "x" * 300),
        ("<class 'ValueError'>:<'expected 'a' or 'b''>", "expected 'a' or 'b'"),
        ("<class 'KeyError'>:<''head''>", "KeyError: 'head'"),
        (
            "<class 'ray.RayActorError'>:<'The actor died.\n\tpid: 7'>",
            "ray.RayActorError: The actor died.",
        ),
        ("<class 'ClientAppException'>:<'\nException X occurred. Message: '>", "unknown"),
    ],
)
def test_what_flower_says_is_shortened_to_its_cause(text: str, line: str):
    assert first_line(text) == line


def divide() -> None:
    1 / 0  # noqa: B018 - it is the exception that counts


def refuse() -> None:
    raise UserError("shard 3 is empty: \\n is no image\nsee the README")


def follow_up() -> None:
    try:
        divide()
    except ZeroDivisionError as error:
        raise RuntimeError("message refused: it's empty") from error


def say_nothing() -> None:
    raise AssertionError


def look_up() -> None:
    dict[str, int]()["Message: head"]


CAUSES: list[tuple[Callable[[], None], str]] = [
    (divide, "ZeroDivisionError: division by zero"),
    (refuse, "shard 3 is empty: \\n is no image"),
    (follow_up, "message refused: it's empty"),
    (say_nothing, "AssertionError"),
    (look_up, "KeyError: 'Message: head'"),
]


def raised(function: Callable[[], None]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise RuntimeError("it did not fail")


@pytest.mark.parametrize(("function", "cause"), CAUSES)
@pytest.mark.parametrize("wrapped", ["alone", "by an app", "by Flower"])
def test_a_traceback_is_shortened_to_its_last_cause(
    function: Callable[[], None], cause: str, wrapped: str
):
    """A worker of a simulation sends the text of the traceback as a `ClientAppException`."""
    text = "".join(traceback.format_exception(raised(function)))
    if wrapped != "alone":
        text = str(ClientAppException(text))
    if wrapped == "by Flower":
        text = f"{ClientAppException}:<'{text}'>"
    assert first_line(text) == cause
    assert f"in {function.__name__}\n" in Failure.of(1, 0, text).trace


@pytest.mark.parametrize(
    ("function", "cause"), [pair for pair in CAUSES if pair[0] not in (look_up, say_nothing)]
)
def test_what_a_node_of_flower_says_is_shortened_to_the_same(
    function: Callable[[], None], cause: str
):
    """The program `flwr-clientapp` writes errors in this form, without a traceback."""
    error = raised(function)
    assert first_line(f"{type(error)}:<'{error}'>") == cause


def test_a_failure_keeps_all_that_was_told():
    told = "".join(traceback.format_exception(raised(follow_up)))
    found = Failure.of(3, 7, told)
    assert (found.round, found.client) == (3, 7)
    assert found.trace == told.strip()
    assert found.reason == "message refused: it's empty"
    assert "division by zero" in found.trace
