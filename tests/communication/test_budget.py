"""A budget is not overspent by a round that costs what the costliest did."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.budget import affords, cost_of_evaluation
from fl_vitlora.communication.ledger import Entry, Ledger


def message(server_round: int, size: int) -> Entry:
    return Entry(round=server_round, client=0, direction="uplink", overhead=size)


def test_without_a_budget_any_round_may_begin():
    assert affords(None, Ledger([message(1, 10**12)]), 2)


def test_the_first_round_may_begin_if_the_greeting_left_anything():
    greeting = Ledger([message(0, 100)])
    assert [affords(budget, greeting, 1) for budget in (99, 100, 101)] == [False, False, True]


def test_the_costliest_round_so_far_is_what_the_next_may_cost():
    ledger = Ledger([message(0, 10), message(1, 50), message(2, 20)])
    assert [affords(budget, ledger, 3) for budget in (129, 130)] == [False, True]


def test_a_last_evaluation_must_fit_as_well():
    ledger = Ledger([message(0, 10), message(1, 50)])
    assert [affords(budget, ledger, 2, reserve=7) for budget in (116, 117)] == [False, True]


def test_an_evaluation_costs_what_the_costliest_did_or_a_message_each_way_for_every_client():
    greeting = [
        Entry(round=0, purpose="greeting", client=0, direction="downlink", overhead=3),
        Entry(round=0, purpose="greeting", client=0, direction="uplink", overhead=5),
        Entry(round=1, client=0, direction="downlink", overhead=70),
    ]
    assert cost_of_evaluation(Ledger(greeting), 10) == 10 * (70 + 5)
    measured = [
        Entry(round=n, purpose="evaluation", client=c, direction="downlink", overhead=20 + n)
        for n in (1, 2)
        for c in range(10)
    ]
    assert cost_of_evaluation(Ledger([*greeting, *measured]), 10) == 10 * 22


@given(budget=st.integers(1, 1000), costs=st.lists(st.integers(1, 200), max_size=20))
def test_rounds_that_cost_no_more_than_one_before_never_overspend(budget: int, costs: list[int]):
    ledger, costliest = Ledger(), 0
    for number, cost in enumerate(costs, start=1):
        if not affords(budget, ledger, number):
            break
        if cost <= costliest:
            assert ledger.total() + cost <= budget
        costliest = max(costliest, cost)
        ledger.record(message(number, cost))
