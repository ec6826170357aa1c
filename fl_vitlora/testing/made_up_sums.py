"""Clients of a made-up secure sum, which mask a made-up update as real clients do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from fl_vitlora.attacks.views import Order, SumClient
from fl_vitlora.communication.fixed_point import Words, encode
from fl_vitlora.privacy.agreement import Assignment, Signatures, told
from fl_vitlora.privacy.secure_sum import Roster, Secret, Seeds, contribute, reveal
from fl_vitlora.state import State, scale

LOSS = 1.0


class MadeUpSumClient:
    """A client without pinned keys.

    The client's masks depend on what the server told the client, like the masks of real clients.

    Args:
        client: The number of the client.
        update: The update that the client sends, whatever model the server sends. With a learning
            rate of 0 the client sends zeros.
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
        del signatures
        share = roster.of(self._secret.client).share
        update = self._update if order.rate else scale(self._update, 0.0)
        words = encode(update, {}, LOSS, limit=roster.limit, share=share)
        try:
            known = replace(roster, told=self._told(order))
            masked, self._secret = contribute(self._secret, known, words)
        except ValueError as error:
            return str(error)
        return masked

    def _told(self, order: Order) -> bytes:
        """Returns the digest of the message `order`, whose tensors count as the initial tensors."""
        assignment = Assignment(round=order.round, rate=order.rate, frozen=order.frozen)
        return told(order.tensors, order.tensors, assignment)

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
