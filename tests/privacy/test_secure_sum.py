"""A secure sum: masks cancel to the bit, hide all else, and can be removed for who dropped out.

Private keys are fixed where statistics are asked for, so that no test depends on luck.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.privacy.secure_sum import (
    CHUNK,
    Member,
    Roster,
    Secret,
    Seeds,
    Words,
    add_up,
    contribute,
    draw_secret,
    mask,
    pair_seed,
    reveal,
)

CLIENTS = (0, 2, 3, 7, 11)
LENGTH = 40


def secret_of(client: int, run: int = 0) -> Secret:
    return Secret(client=client, private=hashlib.sha256(f"{run}/{client}".encode()).digest())


def roster_of(secrets: Iterable[Secret], server_round: int = 1) -> Roster:
    parties = sorted(secrets, key=lambda secret: secret.client)
    members = [
        Member(client=secret.client, share=1 / len(parties), key=secret.public)
        for secret in parties
    ]
    return Roster(round=server_round, members=tuple(members))


SECRETS = {client: secret_of(client) for client in CLIENTS}
ROSTER = roster_of(SECRETS.values())


def vector(client: int, length: int = LENGTH) -> Words:
    """Words that a client might send: small numbers of both signs."""
    return (KeyStream(bytes([client] * 32)).words(length) % 2001 - 1000).astype(np.uint32)


def plain_sum(clients: Iterable[int]) -> list[int]:
    """Adds in Python's integers."""
    columns = zip(*(vector(client).tolist() for client in clients), strict=True)
    return [sum(column) % 2**32 for column in columns]


class Party:
    """The clients of a sum; they remember what the protocol lets them remember."""

    def __init__(self, secrets: Mapping[int, Secret] = SECRETS) -> None:
        self.secrets = dict(secrets)
        self.asked: list[tuple[set[int], set[int]]] = []
        self.leaving: list[int] = []  # who falls silent when it is asked, one each time

    def send(self, roster: Roster = ROSTER) -> dict[int, Words]:
        masked = {}
        for client, secret in self.secrets.items():
            masked[client], self.secrets[client] = contribute(secret, roster, vector(client))
        return masked

    def ask(self, left: frozenset[int], dropped: frozenset[int]) -> Mapping[int, Seeds]:
        self.asked.append((set(left), set(dropped)))
        answering = left - set(self.leaving[:1])
        del self.leaving[:1]
        answers: dict[int, Seeds] = {}
        for client in answering:
            answers[client], self.secrets[client] = reveal(self.secrets[client], 1, dropped)
        return answers


def nobody_asks(left: frozenset[int], dropped: frozenset[int]) -> Mapping[int, Seeds]:
    raise AssertionError(f"{left} were asked about {dropped}")


# what the sum is


def test_masks_cancel_to_the_bit():
    total, left = add_up(ROSTER, Party().send(), nobody_asks)
    assert total.tolist() == plain_sum(CLIENTS)
    assert left == set(CLIENTS)


@given(run=st.integers(0, 2**32), clients=st.sets(st.integers(0, 500), min_size=3, max_size=6))
def test_the_sum_is_the_same_whatever_the_masks(run: int, clients: set[int]):
    secrets = {client: secret_of(client, run) for client in clients}
    drawn = {client: draw_secret(client) for client in clients}
    for parties in (secrets, drawn):
        roster = roster_of(parties.values(), server_round=3)
        masked = {
            client: contribute(secret, roster, vector(client % 256))[0]
            for client, secret in parties.items()
        }
        total, _ = add_up(roster, masked, nobody_asks)
        assert total.tolist() == plain_sum(client % 256 for client in clients)


@given(order=st.permutations(CLIENTS))
def test_who_was_faster_does_not_matter(order: list[int]):
    masked = Party().send()
    total, _ = add_up(ROSTER, {client: masked[client] for client in order}, nobody_asks)
    assert total.tolist() == plain_sum(CLIENTS)


def test_vectors_longer_than_a_chunk_of_the_mask_are_masked_to_the_end():
    length = 2 * CHUNK + 5
    seeds = {7: bytes(range(32))}
    assert (mask(0, seeds, length) == KeyStream(seeds[7]).words(length)).all()
    assert not (mask(0, seeds, length) + mask(9, seeds, length)).any()


# what a masked vector betrays


def test_a_masked_vector_is_its_vector_plus_words_that_do_not_depend_on_it():
    one, _ = contribute(SECRETS[3], ROSTER, np.zeros(LENGTH, np.uint32))
    other, _ = contribute(SECRETS[3], ROSTER, vector(3))
    assert (other - one == vector(3)).all()


@pytest.mark.parametrize("content", [0, 1, 2**31, 2**32 - 1])
def test_masked_words_are_uniform_whatever_they_hide(content: int):
    """The bytes' chi-square lies below the 99.9 % quantile for 255 degrees of freedom."""
    masked, _ = contribute(SECRETS[3], ROSTER, np.full(2**14, content, np.uint32))
    counts = np.bincount(masked.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    assert ((counts - expected) ** 2 / expected).sum() < 330.5


def test_masked_words_are_not_correlated_with_what_they_hide():
    """They are not correlated with each other either, nor with those of another client."""
    hidden = np.linspace(0, 2**32 - 1, 2**14).astype(np.uint32)
    masked = {client: contribute(SECRETS[client], ROSTER, hidden)[0] for client in (3, 7)}
    for a, b in ((masked[3], hidden), (masked[3][1:], masked[3][:-1]), (masked[3], masked[7])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 3.3 / np.sqrt(len(a))


def test_the_sum_of_all_but_one_is_still_masked():
    """Each of the others has a mask in common with the one that is missing."""
    masked = Party().send()
    for missing in CLIENTS:
        others = set(CLIENTS) - {missing}
        total = np.sum([masked[client] for client in others], axis=0, dtype=np.uint32)
        assert not (total == np.array(plain_sum(others), np.uint32)).any()


# the seeds


def test_both_of_a_pair_find_the_same_seed_and_no_other_pair_has_it():
    seeds = {(i, j): pair_seed(SECRETS[i], ROSTER, j) for i in CLIENTS for j in CLIENTS if i != j}
    assert all(seeds[i, j] == seeds[j, i] for i, j in seeds)
    assert len(set(seeds.values())) == len(CLIENTS) * (len(CLIENTS) - 1) / 2


CHANGED: Mapping[str, Callable[[Roster], Roster]] = {
    "round": lambda roster: replace(roster, round=2),
    "share": lambda roster: _with(roster, share=0.1),
    "key": lambda roster: _with(roster, key=secret_of(11, run=1).public),
    "client": lambda roster: _with(roster, client=12),
    "fewer": lambda roster: replace(roster, members=roster.members[:-1]),
}


def _with(roster: Roster, **changes: object) -> Roster:
    """Changes the last member."""
    *others, last = roster.members
    return replace(roster, members=(*others, replace(last, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", CHANGED)
def test_whoever_was_told_another_roster_has_other_seeds(what: str):
    other = CHANGED[what](ROSTER)
    assert other.digest != ROSTER.digest
    assert pair_seed(SECRETS[0], other, 3) != pair_seed(SECRETS[0], ROSTER, 3)


def test_masks_do_not_cancel_where_clients_were_told_different_shares():
    """So a server cannot give one client all the weight without spoiling the sum."""
    masked = Party().send()
    masked[3], _ = contribute(SECRETS[3], _with(ROSTER, share=1e-6), vector(3))
    total, _ = add_up(ROSTER, masked, nobody_asks)
    assert not (total == np.array(plain_sum(CLIENTS), np.uint32)).any()


def test_drawn_keys_differ_and_agree():
    one, other = draw_secret(0), draw_secret(0)
    assert one.private != other.private
    third = replace(other, client=1)
    roster = roster_of([one, third, SECRETS[7]])
    assert pair_seed(one, roster, 1) == pair_seed(third, roster, 0)


def test_public_keys_are_those_of_rfc_7748():
    """Section 6.1: Alice's private and public key."""
    private = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
    public = "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert Secret(client=0, private=bytes.fromhex(private)).public.hex() == public


def test_a_secret_does_not_show_its_key():
    assert SECRETS[0].private.hex() not in repr(SECRETS[0])
    assert repr(SECRETS[0].private) not in repr(SECRETS[0])


def test_a_key_of_small_order_is_refused():
    """With it everybody would know the seed."""
    roster = _with(ROSTER, key=bytes(32))
    with pytest.raises(ValueError, match="key"):
        contribute(SECRETS[0], roster, vector(0))


# who drops out


@pytest.mark.parametrize("dropped", [{0}, {11}, {3, 7}, {0, 2, 11}])
def test_the_sum_of_those_left_is_exact(dropped: set[int]):
    party = Party()
    arrived = {c: words for c, words in party.send().items() if c not in dropped}
    total, left = add_up(ROSTER, arrived, party.ask)
    assert total.tolist() == plain_sum(set(CLIENTS) - dropped)
    assert left == set(CLIENTS) - dropped
    assert party.asked == [(set(CLIENTS) - dropped, dropped)]


def test_who_falls_silent_when_asked_for_seeds_has_dropped_out_as_well():
    party = Party()
    party.leaving = [7, 0]
    arrived = {c: words for c, words in party.send().items() if c != 3}
    total, left = add_up(ROSTER, arrived, party.ask)
    assert left == {2, 11}
    assert total.tolist() == plain_sum(left)
    assert [dropped for _, dropped in party.asked] == [{3}, {3, 7}, {0, 3, 7}]


def test_no_vector_is_held_whose_seeds_are_asked_for():
    """Some clients never arrived, and others fall silent one after the other."""
    party = Party()
    party.leaving = [7, 0]
    masked = {c: words for c, words in party.send().items() if c != 3}
    held: list[set[int]] = []

    def ask(left: frozenset[int], dropped: frozenset[int]) -> Mapping[int, Seeds]:
        held.append(set(masked))
        assert not masked.keys() & dropped
        return party.ask(left, dropped)

    total, _ = add_up(ROSTER, masked, ask)
    assert held == [{0, 2, 7, 11}, {0, 2, 11}, {2, 11}]
    assert (masked, total.tolist()) == ({}, plain_sum({2, 11}))


def test_who_reveals_but_half_of_the_seeds_counts_as_silent():
    party = Party()

    def ask(left: frozenset[int], dropped: frozenset[int]) -> Mapping[int, Seeds]:
        answers = dict(party.ask(left, dropped))
        if 7 in answers:
            answers[7] = {other: seed for other, seed in answers[7].items() if other != 3}
        return answers

    arrived = {c: words for c, words in party.send().items() if c not in (2, 3)}
    total, left = add_up(ROSTER, arrived, ask)
    assert left == {0, 11}
    assert total.tolist() == plain_sum(left)


@pytest.mark.parametrize("arrived", [set(), {7}])
def test_one_alone_is_no_sum(arrived: set[int]):
    masked = {c: words for c, words in Party().send().items() if c in arrived}
    with pytest.raises(ValueError, match="needs at least two remaining"):
        add_up(ROSTER, masked, nobody_asks)


def test_vectors_of_other_lengths_are_refused():
    masked = Party().send()
    masked[7] = masked[7][:-1]
    with pytest.raises(ValueError, match="must have the same length"):
        add_up(ROSTER, masked, nobody_asks)


def test_seeds_of_one_round_say_nothing_of_another():
    """They remove the mask of their own round and leave that of the next."""
    party = Party()
    party.send()
    given_away, _ = reveal(party.secrets[0], 1, frozenset({3}))
    later = replace(ROSTER, round=2)
    assert given_away[3] == pair_seed(SECRETS[0], ROSTER, 3)
    assert given_away[3] != pair_seed(SECRETS[0], later, 3)


# what a client does not do


def test_a_client_masks_once_a_round():
    _, after = contribute(SECRETS[0], ROSTER, vector(0))
    for server_round in (1, 0):
        with pytest.raises(ValueError, match="already masked a vector for round"):
            contribute(after, replace(ROSTER, round=server_round), vector(0))
    contribute(after, replace(ROSTER, round=2), vector(0))


def test_a_client_refuses_a_roster_with_another_key_for_it_or_without_it():
    for roster in (CHANGED["key"](ROSTER), CHANGED["client"](ROSTER), CHANGED["fewer"](ROSTER)):
        with pytest.raises(ValueError, match=r"own public key|not on the roster"):
            contribute(SECRETS[11], roster, vector(11))


REFUSED: Mapping[str, tuple[int, set[int], str]] = {
    "another round": (2, {3}, "it masked no vector for round"),
    "itself": (1, {0}, "must remain"),
    "all others": (1, {2, 3, 7, 11}, "must remain"),
    "a stranger": (1, {3, 5}, "cannot have dropped out"),
    "one that came back": (1, {7}, "that dropped out of a sum cannot come back"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_client_reveals_no_more_than_a_sum_needs(what: str):
    server_round, dropped, reason = REFUSED[what]
    _, after = contribute(SECRETS[0], ROSTER, vector(0))
    _, after = reveal(after, 1, frozenset({3}))
    with pytest.raises(ValueError, match=reason):
        reveal(after, server_round, frozenset(dropped))


def test_a_client_reveals_nothing_before_it_has_masked():
    with pytest.raises(ValueError, match="it masked no vector for round"):
        reveal(SECRETS[0], 1, frozenset({3}))


def test_a_new_sum_begins_with_nobody_dropped():
    _, after = contribute(SECRETS[0], ROSTER, vector(0))
    _, after = reveal(after, 1, frozenset({3}))
    _, after = contribute(after, replace(ROSTER, round=2), vector(0))
    assert after.dropped == frozenset()
    seeds, _ = reveal(after, 2, frozenset({7}))
    assert set(seeds) == {7}


# rosters


ROSTERS: Mapping[str, tuple[Callable[[], Roster], str]] = {
    "two": (lambda: replace(ROSTER, members=ROSTER.members[:2]), "expected at least 3 clients"),
    "nobody": (lambda: replace(ROSTER, members=()), "expected at least 3 clients"),
    "order": (lambda: replace(ROSTER, members=ROSTER.members[::-1]), "sorted by number"),
    "twice": (lambda: _with(ROSTER, client=7), "once"),
    "same key": (lambda: _with(ROSTER, key=ROSTER.members[0].key), "its own public key"),
    "short key": (lambda: _with(ROSTER, key=bytes(31)), "its own public key"),
    "no share": (lambda: _with(ROSTER, share=0.0), "positive"),
    "negative share": (lambda: _with(ROSTER, share=-0.2), "positive"),
    "no number": (lambda: _with(ROSTER, share=float("nan")), "positive"),
    "too much": (lambda: _with(ROSTER, share=0.3), "at most 1"),
}


@pytest.mark.parametrize("what", ROSTERS)
def test_a_roster_whose_sum_would_not_be_secret_is_refused(what: str):
    make, reason = ROSTERS[what]
    with pytest.raises(ValueError, match=reason):
        make()


def test_shares_of_some_add_up():
    assert ROSTER.share(frozenset({0, 7})) == pytest.approx(0.4)
    assert ROSTER.share(ROSTER.clients) == pytest.approx(1.0)
