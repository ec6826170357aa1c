"""The seed decides which clients are hostile; they send a multiple of what they learnt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Attack, Config, load
from fl_vitlora.errors import UserError
from fl_vitlora.population import byzantine
from fl_vitlora.population.byzantine import corrupt, hostile, kind_of

KINDS: tuple[Attack, ...] = ("sign_flip", "scale", "nan")
DELTA = {"w": torch.tensor([1.0, -2.0, 0.0]), "b": torch.tensor([0.5])}


def configure(kinds: Any = KINDS, hostile_clients: int = 6, **given: Any) -> Config:
    return load(None, {"attack.kinds": list(kinds), "attack.clients": hostile_clients, **given})


@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    clients=st.integers(2, 40),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_as_many_as_asked_are_hostile_and_each_in_one_way(
    kinds: list[str], clients: int, seed: int, data: st.DataObject
):
    wanted = data.draw(st.integers(0, clients - 1))
    config = configure(kinds, wanted, clients=clients, seed=seed)
    drawn = [client for group in hostile(config).values() for client in group]
    assert len(drawn) == len(set(drawn)) == wanted
    assert set(drawn) <= set(range(clients))
    told = [kind_of(config, client) for client in range(clients)]
    assert [client for client, kind in enumerate(told) if kind] == sorted(drawn)


def test_six_clients_and_three_kinds_are_two_of_each():
    assert {kind: len(group) for kind, group in hostile(configure()).items()} == dict.fromkeys(
        KINDS, 2
    )


def test_a_kind_that_is_named_twice_is_dealt_twice_as_often():
    found = hostile(configure(["scale", "scale", "nan"]))
    assert {kind: len(group) for kind, group in found.items()} == {"scale": 4, "nan": 2}


def test_another_seed_makes_others_hostile_and_the_same_seed_the_same():
    assert hostile(configure(seed=1)) == hostile(configure(seed=1))
    assert hostile(configure(seed=1)) != hostile(configure(seed=2))


def test_more_hostile_clients_are_the_fewer_and_some_more():
    """So that a curve over their number changes one thing at a time."""
    few, more = (hostile(configure(["scale"], number))["scale"] for number in (3, 5))
    assert set(few) < set(more)


def test_without_an_attack_everybody_is_honest_and_sends_what_it_learnt():
    assert hostile(Config()) == {}
    assert byzantine.as_sent(Config(), 0, DELTA) is DELTA


@pytest.mark.parametrize(("kind", "factor"), [("sign_flip", -1.0), ("scale", 7.0)])
def test_a_hostile_update_is_a_multiple_of_the_honest_one(kind: Attack, factor: float):
    sent = corrupt(DELTA, kind, 7.0)
    assert all(torch.equal(sent[name], factor * tensor) for name, tensor in DELTA.items())


def test_where_nothing_was_learnt_a_nan_is_sent_all_the_same():
    assert all(tensor.isnan().all() for tensor in corrupt(DELTA, "nan", 7.0).values())


def test_the_honest_update_is_left_as_it_is():
    before = {name: tensor.clone() for name, tensor in DELTA.items()}
    for kind in KINDS:
        corrupt(DELTA, kind, 100.0)
    assert all(torch.equal(DELTA[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (configure(KINDS, 0), ["attack.kinds sign_flip,scale,nan", "attack.clients="]),
        (configure([], 6), ["attack.clients 6", "attack.kinds=["]),
        (configure(KINDS, 20), ["attack.clients 20", "of 20 clients", "at most 19"]),
        (configure(KINDS, 1, clients=1), ["attack.clients 1", "of 1 clients", "at most 0"]),
    ],
    ids=["nobody", "nothing", "everybody", "the only one"],
)
def test_an_attack_that_cannot_be_is_refused_in_a_line(config: Config, parts: list[str]):
    with pytest.raises(UserError) as caught:
        policies.check(config)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)
