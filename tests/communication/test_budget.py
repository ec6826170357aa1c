"""A budget is not overspent by a round that costs what the costliest did."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.budget import affords
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
