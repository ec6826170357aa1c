"""One reference for every saving: full fine-tuning under FedAvg, to be checked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.carrier import AROUND, with_flower
from fl_vitlora.communication.ledger import Entry, Ledger
from fl_vitlora.communication.link import Link
from fl_vitlora.communication.reference import Attendance, MessageSizes, full_fine_tuning
from fl_vitlora.communication.summary import summarise

SIZES = MessageSizes(question=1, greeting=2, downlink=1000, uplink=900)
LINK = Link(uplink=8, downlink=8, latency=0.0)  # a byte takes 1 µs
GREETED = 4 * (1 + 2)
ROUNDS = st.lists(
    st.sets(st.integers(0, 3)).flatmap(
        lambda asked: st.sets(st.sampled_from(sorted(asked) or [0])).map(
            lambda failed: Attendance(
                answered=tuple(sorted(asked - failed)), failed=tuple(sorted(asked & failed))
            )
        )
    ),
    max_size=6,
)

FULL = Attendance(answered=(0, 1, 2, 3))
CASES = {
    "all clients, one round": ([FULL], 4 * 1900),
    "all clients, three rounds": ([FULL] * 3, 12 * 1900),
    "half of the clients": ([Attendance(answered=(0, 2))] * 2, 4 * 1900),
    "one failed: it got a model and sent none": (
        [Attendance(answered=(0, 1, 2), failed=(3,))],
        3 * 1900 + 1000,
    ),
    "all failed": ([Attendance(answered=(), failed=(0, 1))], 2000),
    "a budget that allowed no round": ([], 0),
}


@pytest.mark.parametrize(("rounds", "trained"), list(CASES.values()), ids=list(CASES))
def test_one_model_down_and_one_up_for_each_participant_and_round(
    rounds: list[Attendance], trained: int
):
    assert full_fine_tuning(4, rounds, SIZES).total() == GREETED + trained


@given(rounds=ROUNDS)
def test_the_ledger_is_the_equation(rounds: list[Attendance]):
    full = full_fine_tuning(4, rounds, SIZES)
    asked = sum(len(one.answered) + len(one.failed) for one in rounds)
    answered = sum(len(one.answered) for one in rounds)
    assert full.total("downlink") == 4 * 1 + asked * 1000
    assert full.total("uplink") == 4 * 2 + answered * 900
    assert full.total(purpose="evaluation") == 0
    assert {entry.purpose for entry in full} <= {"greeting", "training"}


@given(rounds=ROUNDS)
def test_who_has_built_the_initial_model_spares_the_downloads_of_round_1_alone(
    rounds: list[Attendance],
):
    plain = full_fine_tuning(4, rounds, SIZES)
    caching = full_fine_tuning(4, rounds, SIZES, start_is_known=True)
    assert plain.total(server_round=1) - caching.total(server_round=1) == plain.total("downlink", 1)
    assert plain.total("uplink") == caching.total("uplink")
    for number in (0, 2, 3, 4, 5, 6):
        assert plain.total(server_round=number) == caching.total(server_round=number)


def test_a_line_of_the_rounds_tells_who_was_there():
    line = {"round": 3, "participants": [0, 2], "failures": [{"client": 1, "reason": "late"}]}
    assert Attendance.of(line) == Attendance(answered=(0, 2), failed=(1,))


def sent(*sizes: int) -> Ledger:
    return Ledger(Entry(round=1, client=0, direction="uplink", overhead=size) for size in sizes)


def test_repeated_and_evaluating_messages_make_a_saving_smaller_and_never_larger():
    full = full_fine_tuning(1, [Attendance(answered=(0,))], SIZES)
    once, twice = (summarise(sent(*([100] * n)), LINK, full) for n in (1, 2))
    assert once["full_fine_tuning_bytes"] == twice["full_fine_tuning_bytes"] == 1903
    assert once["saving"] == pytest.approx(19.03)
    assert twice["saving"] == pytest.approx(19.03 / 2)


def test_a_summary_tells_both_with_what_flower_adds():
    """Four messages of the reference, one of the run."""
    full = full_fine_tuning(1, [Attendance(answered=(0,))], SIZES)
    told = summarise(sent(100), LINK, full)
    down, up = AROUND["downlink"], AROUND["uplink"]
    assert told["with_flower_bytes"] == 100 + up
    assert told["full_fine_tuning_with_flower_bytes"] == 1903 + 2 * down + 2 * up
    assert told["saving_with_flower"] == pytest.approx((1903 + 2 * down + 2 * up) / (100 + up))
    assert (told["messages"], told["full_fine_tuning_messages"]) == (1, 4)
    assert told["full_fine_tuning_transfer_seconds"] == pytest.approx(1903e-6, abs=1e-3)
    assert with_flower([]) == 0
