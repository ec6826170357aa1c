"""Calls in turns: never two at once, what they bring done together, each error where it belongs."""

from __future__ import annotations

import functools
import threading

import pytest

from fl_vitlora.training.rendezvous import in_turns, meet


class Table:
    """Notes what is brought to it at once."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def doubled(self, brought: list[int]) -> list[int]:
        self.seen.append(list(brought))
        return [2 * one for one in brought]


def test_what_calls_bring_is_done_together_in_their_order():
    table = Table()
    found = in_turns([functools.partial(meet, table.doubled, n) for n in range(5)])
    assert found == [0, 2, 4, 6, 8]
    assert table.seen == [[0, 1, 2, 3, 4]]


def test_alone_there_is_nobody_to_wait_for():
    table = Table()
    assert meet(table.doubled, 21) == 42
    assert table.seen == [[21]]


def test_never_two_go_on_at_once():
    inside, most = [0], [0]
    lock = threading.Lock()

    def call(number: int) -> int:
        for _ in range(3):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1
            number = meet(Table().doubled, number)
        return number

    assert in_turns([functools.partial(call, n) for n in range(4)]) == [0, 8, 16, 24]
    assert most == [1]


def test_who_fails_or_needs_nobody_does_not_keep_others_waiting():
    table = Table()

    def fails() -> int:
        raise ValueError("before the meeting")

    def fails_later() -> int:
        raise ValueError(f"after it: {meet(table.doubled, 7)}")

    calls = [lambda: meet(table.doubled, 1), fails, lambda: 5, fails_later]
    first, second, third, fourth = in_turns(calls)
    assert (first, third) == (2, 5)
    assert isinstance(second, ValueError)
    assert str(second) == "before the meeting"
    assert str(fourth) == "after it: 14"
    assert table.seen == [[1, 7]]


def test_a_call_that_exits_ends_alone():
    table = Table()

    def exits() -> int:
        raise SystemExit(3)

    first, second = in_turns([exits, lambda: meet(table.doubled, 4)])
    assert isinstance(first, RuntimeError)
    assert str(first) == "SystemExit(3)"
    assert second == 8


def test_an_error_of_what_is_done_together_reaches_all_who_brought_something():
    def refuses(brought: list[int]) -> list[int]:
        raise ValueError(f"not {brought}")

    found = in_turns([lambda: meet(refuses, 1), lambda: meet(refuses, 2), lambda: 3])
    assert [str(one) for one in found] == ["not [1, 2]", "not [1, 2]", "3"]


def test_different_things_are_done_one_after_the_other():
    one, other = Table(), Table()
    calls = [functools.partial(meet, (one if n % 2 else other).doubled, n) for n in range(4)]
    assert in_turns(calls) == [0, 2, 4, 6]
    assert (one.seen, other.seen) == ([[1, 3]], [[0, 2]])


def test_a_result_too_few_is_no_silent_loss():
    def forgetful(brought: list[int]) -> list[int]:
        return brought[:1]

    with pytest.raises(ValueError, match="shorter"):
        in_turns([functools.partial(meet, forgetful, n) for n in range(2)])
