"""A hostile server replaces the public keys in the roster of a secure sum by its own keys.

To one client, the victim, the server sends a roster with the victim's own key and, for all others,
public keys of the server's making. Then the server knows every seed of the victim, and so can
remove the mask exactly. The server can send such a false roster to every client, read all updates,
and add them up itself. The sum is right, so nobody notices the attack.

If clients sign rosters with pinned identity keys (``privacy.client_keys``), the server needs the
signatures of the others for the false roster. It tries the signatures that it can have: no
signatures, the signatures of the others for the true roster, and signatures by identities of its
own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fl_vitlora.attacks.unmasking import (
    Read,
    Unmasking,
    honest_order,
    members_of,
    read,
    roster_of,
)
from fl_vitlora.attacks.views import HostileServerView, SumClient
from fl_vitlora.encryption.identities import Identity
from fl_vitlora.privacy.agreement import Assignment, Signatures, statement, told
from fl_vitlora.privacy.secure_sum import Roster, Secret, pair_seed


@dataclass(frozen=True, kw_only=True)
class FalseKeys(Unmasking):
    """The attack on one client of a secure sum."""

    goal = "The update of one client in a secure sum, by public keys that the server made."

    def guess(self, view: HostileServerView) -> Read:
        """Sends the victim false rosters until the victim masks its update by one of them."""
        clients = view.sum_clients()
        members = members_of(view, list(clients))
        keys = {client: clients[client].key() for client in members}
        own = {client: _secret(client) for client in members if client != view.client}
        false = roster_of(view, keys | {client: one.public for client, one in own.items()})
        words = None
        for signatures in _attempts(clients, roster_of(view, keys), false, view.client):
            view.clock.check()
            answer = clients[view.client].train(honest_order(view), false, signatures)
            if not isinstance(answer, str):
                words = answer
                break
        order = honest_order(view)
        digest = told(order.tensors, view.start, Assignment(round=order.round, rate=order.rate))
        known = replace(false, told=digest)
        seeds = {client: pair_seed(one, known, view.client) for client, one in own.items()}
        return read(view, false, words, seeds, refused=float(words is None))


def _secret(client: int) -> Secret:
    """Returns a key pair that the server makes, to take the place of a client."""
    return Secret(client=client, private=hashlib.sha256(f"false key {client}".encode()).digest())


def _attempts(
    clients: Mapping[int, SumClient], true: Roster, false: Roster, victim: int
) -> Iterator[Signatures]:
    """Yields the signatures that a server can have for a false roster."""
    yield {}
    answers = {c: clients[c].vouch(false if c == victim else true) for c in sorted(true.clients)}
    signed = {c: answer for c, answer in answers.items() if not isinstance(answer, str)}
    yield signed
    forged = {
        client: Identity(client=client, private=_secret(client).private).sign(statement(false))
        for client in true.clients - {victim}
    }
    yield signed | forged
