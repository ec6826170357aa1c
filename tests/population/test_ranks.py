"""A client's rank is the listed one, or dealt by the seed in exact numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, load
from fl_vitlora.errors import UserError
from fl_vitlora.population.ranks import quotas, rank_of

SHARES = st.lists(st.floats(0.01, 1), min_size=1, max_size=6)


def configure(ranks: list[int], shares: Sequence[float] = (), **given: Any) -> Config:
    tuning = {"finetuning.client_ranks": ranks, "finetuning.rank_shares": shares}
    return load(None, {**tuning, **{key.replace("__", "."): given[key] for key in given}})


def dealt(config: Config) -> list[int | None]:
    return [rank_of(config, client) for client in range(config.clients)]


def test_without_a_list_nobody_has_a_rank_of_its_own():
    assert set(dealt(Config())) == {None}


def test_the_rank_of_all_is_nobodys_own():
    assert set(dealt(configure([4] * 20))) == {None}
    assert set(dealt(configure([4, 4], [0.5, 0.5]))) == {None}


def test_a_list_is_read_client_by_client():
    assert dealt(configure([1, 4, 2], clients=3)) == [1, 4, 2]


def test_shares_are_dealt_in_exact_numbers():
    """Half, three tenths and a fifth of twenty."""
    found = dealt(configure([1, 2, 4], [0.5, 0.3, 0.2]))
    assert Counter(found) == {1: 10, 2: 6, 4: 4}


def test_another_seed_deals_to_others_and_the_same_seed_to_the_same():
    one, again, other = (dealt(configure([1, 4], [0.5, 0.5], seed=s)) for s in (0, 0, 1))
    assert one == again != other
    assert Counter(one) == Counter(other)


@given(shares=SHARES, total=st.integers(0, 1000))
def test_parts_sum_up_and_are_off_by_less_than_one(shares: list[float], total: int):
    parts = quotas(shares, total)
    assert sum(parts) == total
    for part, share in zip(parts, shares, strict=True):
        assert abs(part - share / sum(shares) * total) < 1


@pytest.mark.parametrize(
    ("shares", "total", "parts"),
    [
        ([0.29, 0.71], 100, [29, 71]),  # 0.29 · 100 is 28.999999999999996
        ([0.5, 0.5], 3, [2, 1]),
        ([1 / 3, 1 / 3, 1 / 3], 20, [7, 7, 6]),
        ([0.05, 0.05, 0.9], 4, [0, 0, 4]),
        ([1.0], 7, [7]),
    ],
)
def test_parts_by_hand(shares: list[float], total: int, parts: list[int]):
    assert quotas(shares, total) == parts


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        configure([1, 2, 4], clients=3),
        configure([1, 4], [0.25, 0.75]),
        configure([1, 2, 4], [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_ranks_that_fit_are_allowed(config: Config):
    policies.check(config)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (configure([1, 2]), ["client_ranks", "each of 20 clients", "got 2", "rank_shares"]),
        (configure([1, 2], [1.0]), ["rank_shares", "each of 2 values", "got 1"]),
        (configure([], [1.0]), ["rank_shares", "set one rank for each share", "client_ranks"]),
        (configure([1, 2], [0.5, 0.6]), ["rank_shares", "sum of 1", "1.1"]),
        (configure([2, 8, 5], clients=3), ["client_ranks", "finetuning.rank 4", "got 8"]),
        (
            configure([1, 2], clients=2, finetuning__method="head"),
            ["client_ranks", "method head", "choose lora"],
        ),
    ],
    ids=["too few", "shares missing", "no values", "sum", "above", "no matrices"],
)
def test_ranks_that_do_not_fit_are_refused_in_a_line(config: Config, parts: list[str]):
    with pytest.raises(UserError) as caught:
        policies.check(config)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
