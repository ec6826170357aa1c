"""Clients of a made-up secure sum, which mask a made-up update as real clients do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

from fl_vitlora.attacks.views import Order, SumClient
from fl_vitlora.communication.fixed_point import Words, encode
from fl_vitlora.privacy.agreement import Signatures
from fl_vitlora.privacy.secure_sum import Roster, Secret, Seeds, contribute, reveal
from fl_vitlora.state import State

LOSS = 1.0


class MadeUpSumClient:
    """A client without pinned keys.

    Args:
        client: The number of the client.
        update: The update that the client sends, whatever it gets from the server.
    """

    def __init__(self, client: int, update: State) -> None:
        private = hashlib.sha256(f"made up {client}".encode()).digest()
        self._secret, self._update = Secret(client=client, private=private), update

    def key(self) -> bytes:
        """Returns the client's public key."""
        return self._secret.public

    def vouch(self, roster: Roster) -> bytes | str:
        """Refuses to sign, as a client without identity keys does."""
        del roster
        return "this client signs no roster"

    def train(self, order: Order, roster: Roster, signatures: Signatures) -> Words | str:
        """Returns the masked words of the update."""
        del order, signatures
        share = roster.of(self._secret.client).share
        words = encode(self._update, {}, LOSS, limit=roster.limit, share=share)
        try:
            masked, self._secret = contribute(self._secret, roster, words)
        except ValueError as error:
            return str(error)
        return masked

    def reveal(self, roster: Roster, dropped: frozenset[int]) -> Seeds | str:
        """Returns the seeds that the client shares with clients that dropped out."""
        try:
            seeds, self._secret = reveal(self._secret, roster.round, dropped)
        except ValueError as error:
            return str(error)
        return seeds


def made_up_sum_clients(updates: Mapping[int, State]) -> Callable[[], Mapping[int, SumClient]]:
    """Returns the function that makes clients of a new run, for `HostileServerView.sum_clients`.

    Args:
        updates: The update of each client.
    """
    return lambda: {client: MadeUpSumClient(client, delta) for client, delta in updates.items()}
