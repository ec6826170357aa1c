"""A hostile server claims that a client whose vector arrived dropped out of a secure sum.

All public keys are the true ones, and all signatures are genuine. The server lets three clients
mask their updates. Then it asks two of them for the seeds that they share with the third client. An
honest server sends this request only if the third client has dropped out. With these seeds the
server removes the mask of the third client.

Signed rosters do not prevent this. Clients with ``privacy.reveal_seeds=false`` do: they reveal no
seed, and a round with a client that really dropped out fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.attacks.unmasking import (
    Read,
    Unmasking,
    honest_order,
    members_of,
    read,
    roster_of,
)
from fl_vitlora.attacks.views import HostileServerView
from fl_vitlora.communication.fixed_point import Words


@dataclass(frozen=True, kw_only=True)
class FalseDropout(Unmasking):
    """The attack on one client of a secure sum."""

    goal = "The update of one client in a secure sum, by the seeds of the other clients."

    def guess(self, view: HostileServerView) -> Read:
        """Starts a sum, and asks the other clients for the seeds they share with the victim."""
        clients, victim = view.sum_clients(), view.client
        members = members_of(view, list(clients))
        roster = roster_of(view, {client: clients[client].key() for client in members})
        answers = {client: clients[client].vouch(roster) for client in members}
        signatures = {c: one for c, one in answers.items() if not isinstance(one, str)}
        masked: dict[int, Words] = {}
        for client in members:
            view.clock.check()
            words = clients[client].train(honest_order(view), roster, signatures)
            if not isinstance(words, str):
                masked[client] = words
        others, seeds = [client for client in members if client != victim], {}
        for client in others:
            told = clients[client].reveal(roster, frozenset({victim}))
            if not isinstance(told, str):
                seeds[client] = told[victim]
        refused = 1 - len(seeds) / len(others)
        return read(view, roster, masked.get(victim), seeds, refused=refused)
