"""Clients mask only what all participants have signed: rounds of the real client app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message

from fl_vitlora.encryption.identities import Identities, Pins, draw_identity
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.wire import masking, vouching
from fl_vitlora.flower.wire.folding import fold, unfold
from fl_vitlora.privacy.agreement import Signatures, check_signed, statement, vouch
from fl_vitlora.privacy.secure_sum import Member, Roster, Secret, contribute, draw_secret
from tests.flower.client.test_context_state import Clients
from tests.flower.server.test_secure_sums import SECURE, make

DRAWN = {client: draw_identity(client) for client in range(3)}
PINS = Pins(keys={c: one.public for c, one in DRAWN.items()}, source="clients.pub")
IDENTITIES = Identities(pins=PINS, private_keys={c: one.private for c, one in DRAWN.items()})


def pinned(folder: Path, **given: Any) -> Clients:
    sums = SecureAggregator(limit=4.0, equal=False, pins=PINS)
    clients = Clients(folder, None, sums=sums, **SECURE, **given)
    clients.settings = replace(clients.settings, identities=IDENTITIES)
    return clients


def altered(clients: Clients, change: Callable[[Any], None], kind: str = "train") -> None:
    """Lets the server change the roster, with its signatures, in each message of a kind."""
    app = clients.grid.app

    def hear(message: Message, context: Any) -> Any:
        if message.metadata.message_type == kind:
            found = unfold(message.content)
            change(found.content.config_records[masking.RECORD])
            message.content = fold(found.content, found.parts, found.versions)
        return app(message, context)

    clients.grid.app = hear  # type: ignore[assignment]


def test_the_model_is_that_of_sums_without_signatures_bit_for_bit(tmp_path: Path):
    signed, plain = pinned(tmp_path / "signed"), make(tmp_path / "plain", **SECURE)
    for server_round in (1, 2):
        one, other = (c.train(server_round, c.initial)[0] for c in (signed, plain))
        assert one.loss == other.loss
        assert one.members == 3
        for name, tensor in one.delta.items():
            assert torch.equal(tensor, other.delta[name])


def test_the_bytes_of_signatures_are_counted(tmp_path: Path):
    signed, plain = pinned(tmp_path / "signed"), make(tmp_path / "plain", **SECURE)
    for clients in (signed, plain):
        clients.train(1, clients.initial)
    vouching_entries = [e for e in signed.ledger if e.purpose == "vouching"]
    assert sorted((e.client, e.direction) for e in vouching_entries) == [
        (client, direction) for client in range(3) for direction in ("downlink", "uplink")
    ]
    assert all(e.total > 64 for e in vouching_entries)
    down = [
        sum(e.total for e in c.ledger if (e.purpose, e.direction) == ("training", "downlink"))
        for c in (signed, plain)
    ]
    assert 3 * 3 * 64 <= down[0] - down[1] <= 3 * 3 * 64 + 3 * 60


def test_a_client_that_does_not_sign_is_left_out_before_anybody_trains(tmp_path: Path):
    """With three clients two are left, whose sum would tell each of them the other's update."""
    signed = pinned(tmp_path)
    app = signed.grid.app

    def mute(message: Message, context: Any) -> Any:
        if message.metadata.message_type == vouching.VOUCH and context.node_config["partition-id"]:
            raise RuntimeError("no key at hand")
        return app(message, context)

    signed.grid.app = mute  # type: ignore[assignment]
    assert signed.train(1, signed.initial) == []
    reasons = {f.client: f.reason for f in signed.failures}
    assert reasons[1] == reasons[2] == "no key at hand"
    assert "a secure sum of 1 clients" in reasons[0]
    assert not [e for e in signed.ledger if e.purpose == "training"]


FALSE = draw_secret(1).public


def swap_key(record: Any) -> None:
    keys = list(record[masking.KEYS])
    record[masking.KEYS] = [*keys[:1], FALSE, *keys[2:]]


def swap_signatures(record: Any) -> None:
    first, second, third = record[vouching.SIGNATURES]
    record[vouching.SIGNATURES] = [first, third, second]


def drop_signatures(record: Any) -> None:
    del record[vouching.SIGNATURES]


def fewer(record: Any) -> None:
    for name in (masking.CLIENTS, masking.SHARES, masking.KEYS, vouching.SIGNATURES):
        record[name] = list(record[name])[:2]


def doubled(record: Any) -> None:
    for name in (masking.CLIENTS, masking.KEYS, vouching.SIGNATURES):
        first, second, _ = record[name]
        record[name] = [first, second, second]


def stranger(record: Any) -> None:
    record[masking.CLIENTS] = [0, 1, 9]


def later(record: Any) -> None:
    record[masking.ROUND] = 7


def other_share(record: Any) -> None:
    record[masking.SHARES] = [0.5, 0.25, 0.25]


LIES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a key of the server": (swap_key, "client 0 has not signed it with the key in clients.pub"),
    "signatures of others": (swap_signatures, "client 1 has not signed it"),
    "no signatures": (drop_signatures, "client 0 has not signed it"),
    "fewer clients": (fewer, "expected at least 3 clients"),
    "a doubled client": (doubled, "must list every client once"),
    "a stranger": (stranger, "client 9 has no key in clients.pub"),
    "another round": (later, "client 0 has not signed it"),
    "another share": (other_share, "client 0 has not signed it"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_client_masks_nothing_by_a_roster_that_was_changed(what: str, tmp_path: Path):
    change, told = LIES[what]
    signed = pinned(tmp_path)
    altered(signed, change)
    assert signed.train(1, signed.initial) == []
    reasons = {f.client: f.reason for f in signed.failures}
    assert told in reasons[0]
    assert "\n" not in reasons[0]
    assert not [m for m in signed.grid.received if m.has_content()]


def test_without_pinned_keys_a_false_key_is_not_noticed(tmp_path: Path):
    """Client 2 then masks by the seed that it shares with the server."""
    plain = make(tmp_path, **SECURE)

    def change(record: Any) -> None:
        swap_key(record)

    altered(plain, change)
    plain.train(1, plain.initial)
    (refusing,) = [f for f in plain.failures if "own public key" in f.reason]
    assert refusing.client == 1  # it alone knows that the key is not its own


@pytest.mark.parametrize("what", ["a key of the server", "another round"])
def test_a_client_does_not_sign_what_it_would_not_mask(what: str, tmp_path: Path):
    signed = pinned(tmp_path)
    altered(signed, LIES[what][0], vouching.VOUCH)
    signed.train(1, signed.initial)
    failed = {f.client: f.reason for f in signed.failures}
    if what == "a key of the server":
        assert "a public key for this client that is not its own" in failed[1]
    assert sorted(failed) == [0, 1, 2]  # nobody has signed the roster of the server


# the functions of a client, with clients that remember what the protocol lets them remember


@dataclass
class Party:
    """Three clients of a sum in one run."""

    secrets: dict[int, Secret]

    @classmethod
    def of_new_run(cls) -> Party:
        return cls({client: draw_secret(client) for client in range(3)})

    def roster(self, server_round: int = 1) -> Roster:
        members = [Member(client=c, share=1 / 3, key=s.public) for c, s in self.secrets.items()]
        return Roster(round=server_round, members=tuple(members))

    def sign(self, roster: Roster) -> dict[int, bytes]:
        return {c: vouch(s, roster, IDENTITIES, 1) for c, s in self.secrets.items()}

    def check(self, roster: Roster, signatures: Signatures, least: int = 1) -> None:
        for secret in self.secrets.values():
            check_signed(secret, roster, PINS, signatures, least)


def test_what_all_have_signed_is_accepted():
    party = Party.of_new_run()
    party.check(party.roster(), party.sign(party.roster()))


def test_signatures_of_one_round_are_none_of_another():
    party = Party.of_new_run()
    signatures = party.sign(party.roster(1))
    with pytest.raises(ValueError, match="client 0 has not signed it"):
        party.check(party.roster(2), signatures)


def test_a_round_that_is_over_is_neither_signed_nor_masked_again():
    party = Party.of_new_run()
    words = torch.zeros(3).to(torch.uint32).numpy()
    roster = party.roster(2)
    signatures = party.sign(roster)
    party.secrets = {c: contribute(s, roster, words)[1] for c, s in party.secrets.items()}
    for stale in (roster, party.roster(1)):
        with pytest.raises(ValueError, match="expected a round after 2"):
            party.sign(stale)
        with pytest.raises(ValueError, match="expected a round after 2"):
            party.check(stale, signatures)


def test_a_roster_of_another_run_is_refused_with_all_its_signatures():
    """All of its signatures are genuine, but it lacks the key that the client has drawn anew."""
    old, new = Party.of_new_run(), Party.of_new_run()
    roster = old.roster(5)
    with pytest.raises(ValueError, match="a public key for this client that is not its own"):
        new.check(roster, old.sign(roster))
    mixed = replace(roster, members=(new.roster().members[0], *roster.members[1:]))
    with pytest.raises(ValueError, match="client 0 has not signed it"):
        check_signed(new.secrets[0], mixed, PINS, old.sign(roster), 1)


def test_a_client_takes_part_only_with_as_many_others_as_it_was_told():
    party = Party.of_new_run()
    with pytest.raises(ValueError, match="it lists 3 clients, expected 4 or more"):
        vouch(party.secrets[0], party.roster(), IDENTITIES, 4)


def test_a_signature_serves_no_other_purpose():
    party = Party.of_new_run()
    roster = party.roster()
    bare = {client: one.sign(roster.digest) for client, one in DRAWN.items()}
    assert statement(roster) != roster.digest
    with pytest.raises(ValueError, match="client 0 has not signed it"):
        party.check(roster, bare)


# dropped clients


def test_who_reveals_no_seeds_lets_the_round_fail_if_a_client_drops_out(tmp_path: Path):
    signed = pinned(tmp_path, privacy__reveal_seeds=False)
    app = signed.grid.app

    def deaf(message: Message, context: Any) -> Any:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            raise RuntimeError("out of memory")
        return app(message, context)

    signed.grid.app = deaf  # type: ignore[assignment]
    assert signed.train(1, signed.initial) == []
    reasons = {f.client: f.reason for f in signed.failures}
    assert reasons[1] == "out of memory"
    assert "needs at least two remaining clients" in reasons[0]
