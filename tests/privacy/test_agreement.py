"""The masks of a sum depend on what the clients were told, and shares have a limit."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from fl_vitlora.privacy.agreement import Assignment, check_shares, told
from fl_vitlora.privacy.secure_sum import Member, Roster, add_up
from tests.privacy.test_secure_sum import CLIENTS, ROSTER, Party, nobody_asks, plain_sum

START = {"a": torch.tensor([1.0, -2.0]), "b": torch.zeros(3)}
HONEST = Assignment(round=2, rate=0.1)


OTHERS: dict[str, Any] = {
    "round": 3,
    "rate": 0.0,
    "epochs": 1,
    "frozen": ("a",),
    "restarted": ("a",),
    "proximal_mu": 0.5,
    "clipping_norm": 0.0,
    "merges": 1,
}


@pytest.mark.parametrize("name", [each.name for each in fields(Assignment)])
def test_every_field_of_an_assignment_changes_the_digest(name: str):
    other = replace(HONEST, **{name: OTHERS[name]})
    assert told(START, START, other) != told(START, START, HONEST)


def test_another_or_a_further_tensor_changes_the_digest():
    moved, further = START | {"b": torch.tensor([0.0, 1e-9, 0.0])}, START | {"c": START["a"]}
    digests = {told(each, START, HONEST) for each in (START, moved, further)}
    assert len(digests) == 3


def test_the_rounding_of_another_processor_does_not_change_the_digest():
    rounded = START | {"a": START["a"] * (1 + 1e-6)}
    assert told(rounded, START, HONEST) == told(START, START, HONEST)
    trained = START | {"a": START["a"] * (1 + 1e-4)}
    assert told(trained, START, HONEST) != told(START, START, HONEST)


def test_what_a_client_has_computed_by_itself_may_differ_between_clients():
    """Another processor has computed other first tensors; both clients keep them."""
    other = START | {"a": START["a"] * (1 + 1e-6)}
    assert told(other, other, HONEST) == told(START, START, HONEST)


def test_a_tensor_cannot_imitate_the_name_of_another_one():
    """A server could otherwise tell two clients different things with one digest."""
    start = {"a": torch.zeros(8), "b": torch.zeros(8)}
    heading = b"\0b(8,)"
    head = torch.frombuffer(bytearray(heading + bytes(26)), dtype=torch.float32)
    tail = torch.frombuffer(bytearray(bytes(26) + heading), dtype=torch.float32)
    one, other = start | {"a": head}, start | {"b": tail}
    assert told(one, start, HONEST) != told(other, start, HONEST)


@pytest.mark.parametrize("same", [True, False])
def test_masks_cancel_only_if_all_clients_were_told_the_same(same: bool):
    party, one = Party(), told(START, START, HONEST)
    masked = party.send(replace(ROSTER, told=one))
    if not same:
        quiet = told(START, START, replace(HONEST, rate=0.0))
        other = Party().send(replace(ROSTER, told=quiet))
        masked = {client: masked[client] if client == 3 else other[client] for client in CLIENTS}
    total, _ = add_up(ROSTER, masked, nobody_asks)
    assert (total.tolist() == plain_sum(CLIENTS)) is same


def test_seeds_of_dropped_clients_depend_on_what_was_told_too():
    party = Party()
    masked = party.send(replace(ROSTER, told=told(START, START, HONEST)))
    del masked[7]
    total, left = add_up(ROSTER, masked, party.ask)
    assert total.tolist() == plain_sum(left)


def roster(*shares: float) -> Roster:
    members = [
        Member(client=client, share=share, key=bytes([client]) * 32)
        for client, share in enumerate(shares)
    ]
    return Roster(round=4, members=tuple(members))


def test_a_client_must_not_have_more_than_the_largest_share():
    check_shares(roster(0.5, 0.3, 0.2), 0.5)
    check_shares(roster(1 / 3, 1 / 3, 1 / 3), 0.1)  # nobody can have less than a third
    with pytest.raises(ValueError, match=r"client 1 a share of 0\.6 in the mean, .* at most 0\.5"):
        check_shares(roster(0.2, 0.6, 0.2), 0.5)


def test_a_share_counts_as_a_part_of_all_shares():
    """Shares may add up to less than 1, so a small share can still be almost the whole mean."""
    with pytest.raises(ValueError, match=r"client 0 a share of 1 in the mean"):
        check_shares(roster(0.4, 1e-9, 1e-9), 0.5)
