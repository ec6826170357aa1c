"""The server's side of secure aggregation: stores public keys and adds up masked replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import RecordDict

from fl_vitlora.communication.fixed_point import Words
from fl_vitlora.communication.packing import Layout
from fl_vitlora.encryption.identities import SETTING, Pins
from fl_vitlora.federation.failures import first_line
from fl_vitlora.flower.server.asking import Asker
from fl_vitlora.flower.server.posting import Request
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.flower.wire import masking, messages, vouching
from fl_vitlora.flower.wire.folding import fold
from fl_vitlora.flower.wire.opened_sum import open_sum
from fl_vitlora.flower.wire.reported_counts import Counts, check_images, limited, read_steps
from fl_vitlora.privacy.agreement import Signatures, unsigned_by
from fl_vitlora.privacy.secure_sum import Roster, Seeds, add_up
from fl_vitlora.strategy import Update

# Asks clients for their seeds. The arguments are the roster, the clients whose masked vectors
# arrived, and the clients that dropped out. Each seed is shared with a client that dropped out.
Ask = Callable[[Roster, frozenset[int], frozenset[int]], Mapping[int, Seeds]]

# Asks all participants to sign a roster. Returns the signatures, and the reason for each
# participant that did not sign.
AskToSign = Callable[[Roster], tuple[Signatures, Mapping[int, str]]]


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """The roster of a round, before the clients train.

    Attributes:
        roster: The roster; None if too few clients are left for a sum.
        signatures: The signatures of all participants; empty if clients do not sign rosters.
        failures: A dictionary: for each client that was left out, the reason.
    """

    roster: Roster | None
    signatures: Signatures
    failures: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class Summed:
    """The result of adding up the masked updates of one round.

    Attributes:
        updates: One update, the mean of all clients in the sum; empty if the sum failed.
        failures: For each client that is not in the sum, the reason.
        clipped: The number of scalars that the clients in the sum clipped to the range ±R.
    """

    updates: tuple[Update, ...] = ()
    failures: Mapping[int, str]
    clipped: int = 0


class SecureAggregator:
    """Adds up the updates of clients; the server sees only the sum.

    Args:
        limit: The range R: the largest absolute value of a number in an update.
        equal: True if all clients have equal weights. If `equal` is False, a client's weight is its
            number of images.
        pins: The pinned public keys of all clients, if clients sign rosters; else None.
        most: The largest share of one client in a sum; None if there is no limit.
    """

    def __init__(
        self, *, limit: float, equal: bool, pins: Pins | None = None, most: float | None = None
    ) -> None:
        self._limit = limit
        self._equal = equal
        self._most = most
        self._pins = pins
        self._keys: dict[int, bytes] = {}

    def greeted(self, client: int, greeting: RecordDict) -> None:
        """Stores the public key in a client's first message, the greeting.

        Raises:
            ValueError: If the key is missing, or if another client has the same key.
        """
        key = masking.read_key(greeting)
        if key in self._keys.values():
            raise ValueError("message refused: another client has the same public key")
        self._keys[client] = key

    def roster(self, server_round: int, images: Mapping[int, int]) -> Roster:
        """Returns the roster of a round: the clients in the sum, with their shares in the mean."""
        own = limited(images, self._most)  # some of the clients may have left
        weights = {client: 1.0 if self._equal else float(n) for client, n in own.items()}
        return masking.make_roster(server_round, self._keys, weights, self._limit)

    def agree(self, server_round: int, images: Mapping[int, int], ask: AskToSign) -> Agreed:
        """Returns the roster of a round, signed by all participants if clients sign rosters.

        A client that does not sign is left out. The other clients then sign a new roster without
        this client.

        Args:
            server_round: The number of the round.
            images: The number of images of each client that shall take part.
            ask: A function that asks all participants for their signatures.
        """
        left, failures = dict(images), dict[int, str]()
        while True:
            try:
                roster = self.roster(server_round, left)
            except ValueError as error:
                alone = dict.fromkeys(left, str(error))
                return Agreed(roster=None, signatures={}, failures=alone | failures)
            if self._pins is None:
                return Agreed(roster=roster, signatures={}, failures={})
            signatures, reasons = ask(roster)
            unsigned = unsigned_by(roster, self._pins, signatures)
            if not unsigned:
                return Agreed(roster=roster, signatures=signatures, failures=failures)
            own = f"it did not sign the roster with the key that the server has for it ({SETTING})"
            failures |= {client: reasons.get(client, own) for client in unsigned}
            left = {client: n for client, n in left.items() if client not in failures}

    def add_up(
        self,
        roster: Roster,
        replies: dict[int, RecordDict],
        layout: Layout,
        ask: Ask,
        *,
        images: Mapping[int, int],
        expected: Mapping[int, Counts],
    ) -> Summed:
        """Adds up the replies of a round.

        With the seeds that others share with a dropped client, the server could also unmask this
        client's words. So the reply of a client that is not in the sum is deleted before any client
        is asked for seeds.

        Args:
            roster: The members of the round's sum.
            replies: The records of every reply, by client. This method empties `replies`.
            layout: The names and shapes of the tensors in the clients' updates.
            ask: A function that asks for seeds, called only if some members dropped out.
            images: The number of images by which each member is weighted.
            expected: For each client, the numbers of images and steps that its update must state.

        Returns:
            The mean of all clients in the sum, if there is a sum, and the failures of the clients
            that are not in the sum.
        """
        read = _read_all(replies, layout, expected)
        arrived, failures = frozenset(read.masked), dict(read.failures)
        try:
            total, left = add_up(roster, read.masked, lambda left, lost: ask(roster, left, lost))
        except ValueError as error:
            return Summed(failures=failures | dict.fromkeys(arrived, str(error)))
        silent = arrived - left
        failures |= dict.fromkeys(
            silent, "it did not reveal the seeds that it shares with dropped clients"
        )
        try:
            update, clipped = open_sum(
                total,
                roster,
                layout,
                samples={client: images[client] for client in left},
                steps={client: read.steps[client] for client in left},
                population=len(self._keys),
            )
        except ValueError as error:
            return Summed(failures=failures | dict.fromkeys(left, str(error)))
        return Summed(updates=(update,), failures=failures, clipped=clipped)


@dataclass(frozen=True, kw_only=True)
class _Replies:
    """The contents of the replies of a round, by client.

    Attributes:
        masked: The masked words of each client whose reply can be read. There is no other reference
            to these words, and the sum empties this dictionary.
        steps: The number of optimiser steps of each of these clients.
        failures: For each client whose reply cannot be read, the reason.
    """

    masked: dict[int, Words]
    steps: Mapping[int, int]
    failures: Mapping[int, str]


def _read_all(
    replies: dict[int, RecordDict], layout: Layout, expected: Mapping[int, Counts]
) -> _Replies:
    """Reads all replies of a round; each reply is deleted from `replies` before it is read."""
    masked: dict[int, Words] = {}
    steps: dict[int, int] = {}
    failures: dict[int, str] = {}
    for client in sorted(replies):
        try:
            steps[client], masked[client] = _read(replies.pop(client), layout, expected[client])
        except ValueError as error:
            failures[client] = str(error)
    return _Replies(masked=masked, steps=steps, failures=failures)


def _read(content: RecordDict, layout: Layout, expected: Counts) -> tuple[int, Words]:
    """Returns the number of optimiser steps and the masked words of a reply."""
    metrics = messages.metrics_of(content)
    if messages.SAMPLES in metrics:
        check_images(metrics, expected)
    steps = read_steps(metrics, expected)
    return steps, masking.read_masked(content, layout)


def ask_for_seeds(
    asker: Asker, roster: Roster, left: frozenset[int], dropped: frozenset[int]
) -> dict[int, Seeds]:
    """Asks the clients left in a secure sum for the seeds they share with clients that dropped out.

    Args:
        asker: The object that sends the question.
        roster: The roster of the sum, with its members and their shares.
        left: The clients whose masked vectors arrived.
        dropped: The members whose masked vectors did not arrive.

    Returns:
        The revealed seeds, by client. A client with an invalid answer is missing, and therefore
        counts as dropped too.
    """
    question, records = fold(masking.ask_for_seeds(roster, dropped), {}, {}), asker.records
    requests = [
        Request.to(records.node_of(client), masking.REVEAL, question) for client in sorted(left)
    ]
    seeds = {}
    for reply in asker.post.counted(roster.round, "revealing", requests, records):
        with suppress(ValueError):
            if not reply.message.has_error():
                client = records.client_at(reply.node)
                seeds[client] = masking.read_seeds(ServerEnd.open(reply.opened()))
    return seeds


def ask_to_sign(asker: Asker, roster: Roster) -> tuple[Signatures, Mapping[int, str]]:
    """Asks all participants of a roster to sign it.

    Args:
        asker: Sends the question.
        roster: The roster of the sum.

    Returns:
        Two dictionaries, both by client: the signatures, which are not checked here; and the reason
        for each client without a signature.
    """
    question, records = fold(vouching.ask_to_sign(roster), {}, {}), asker.records
    requests = [
        Request.to(records.node_of(client), vouching.VOUCH, question)
        for client in sorted(roster.clients)
    ]
    silent = f"no signature within {asker.post.timeout:g} s"
    signatures, reasons = dict[int, bytes](), dict.fromkeys(roster.clients, silent)
    for reply in asker.post.counted(roster.round, "vouching", requests, records):
        client = records.client_at(reply.node)
        if reply.message.has_error():
            reasons[client] = first_line(str(reply.message.error.reason))
            continue
        try:
            signatures[client] = vouching.read_signature(ServerEnd.open(reply.opened()))
        except ValueError as error:
            reasons[client] = str(error)
    return signatures, {c: reason for c, reason in reasons.items() if c not in signatures}
