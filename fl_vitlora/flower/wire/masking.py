"""Secure aggregation in Flower's records: the messages, and the memory of a client.

    greeting   client → server   the client's public key
    training   server → client   the roster (the list of participants), with the instruction
               client → server   masked words, instead of tensors and loss
    reveal     server → client   the round and the clients that dropped out, if there are any
               client → server   the seeds that the client shares with those clients

In its Flower context, a client keeps its private key, its last roster, and the list of clients
whose shared seeds it has revealed. From these records, the client knows when another mask or seed
would expose its update. In this case the client sends neither masked words nor seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)

from fl_vitlora.communication.fixed_point import Words, encode, pack_words, unpack_words
from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire import messages
from fl_vitlora.privacy.secure_sum import (
    KEY_BYTES,
    Member,
    Roster,
    Secret,
    Seeds,
    contribute,
    draw_secret,
    reveal,
)
from fl_vitlora.state import State

RECORD = "secure-sum"  # the name of the record in messages and in a client's context
MASKED_TYPE = "fl_vitlora.masked"
REVEAL = f"{MessageType.QUERY}.reveal"

PUBLIC, PRIVATE, CLIENT, ROUND = "public-key", "private-key", "client", "round"
CLIENTS, SHARES, KEYS, LIMIT = "clients", "shares", "keys", "range"
DROPPED, SEEDS, TOLD = "dropped", "seeds", "told"


# the functions of a client


def introduce(context: Context, client: int) -> ConfigRecord:
    """Draws a client's keys once in a run, and stores them in the client's context.

    A client that is greeted again keeps its keys and its memory of earlier sums. Without the memory
    of earlier sums, a client could mask two vectors of one round under the same mask, and their
    difference would no longer be hidden.

    Args:
        context: The Flower context of the client, which stores its keys and its last roster.
        client: The number of the client.

    Returns:
        The record `RECORD` of the client's first message (the greeting), with the public key.
    """
    known = RECORD in context.state.config_records
    secret = kept_secret(context) if known else draw_secret(client)
    _keep(context, secret)
    return ConfigRecord({PUBLIC: secret.public})


def hide(
    context: Context,
    instruction: RecordDict,
    delta: State,
    report: State,
    loss: float,
    *,
    limit: float,
    told: bytes = b"",
) -> ArrayRecord:
    """Masks a client's update for the sum of the round.

    Args:
        context: The Flower context of the client, which stores its keys and its last roster.
        instruction: The records of the instruction, with the roster.
        delta: The trained tensors after training minus before.
        report: The strategy's report, or an empty state.
        loss: The mean training loss.
        limit: The range R: the largest absolute value of a number in an update.
        told: The digest of the instruction (`agreement.told`).

    Returns:
        The masked words, which are sent in place of tensors.

    Raises:
        ValueError: If the client has no key because it was not greeted; if the roster is missing,
            or the client must not accept the roster; or if the update is not finite.
    """
    secret, roster = kept_secret(context), read_roster(instruction)
    if roster.limit != limit:
        raise ValueError(
            f"the server sums in a range of {roster.limit:g}, but this client uses a range of "
            f"{limit:g}; privacy.range must be the same at the server and at all clients"
        )
    share = roster.of(secret.client).share
    words = encode(delta, report, loss, limit=limit, share=share)
    masked, after = contribute(secret, replace(roster, told=told), words)
    _keep(context, after)
    data = pack_words(masked, Layout.of(delta))
    return ArrayRecord({messages.PACKED: Array("uint8", (len(data),), MASKED_TYPE, data)})


def write_masked(
    context: Context,
    instruction: RecordDict,
    *,
    delta: State,
    report: State,
    loss: float,
    steps: int,
    limit: float,
    told: bytes = b"",
) -> RecordDict:
    """Writes a client's reply: masked words, and the number of steps, which is not secret.

    Args:
        context: The Flower context of the client, which stores its keys and its last roster.
        instruction: The records of the instruction, with the roster.
        delta: The trained tensors after training minus before.
        report: The strategy's report, or an empty state.
        loss: The mean training loss, which is masked too.
        steps: The number of optimiser steps.
        limit: The range R: the largest absolute value of a number in an update.
        told: The digest of the instruction (`agreement.told`).

    Raises:
        ValueError: If `hide` refuses to mask the update.
    """
    arrays = hide(context, instruction, delta, report, loss, limit=limit, told=told)
    metrics = MetricRecord({messages.STEPS: steps})
    return RecordDict({messages.ARRAYS: arrays, messages.METRICS: metrics})


def answer(message: Message, context: Context) -> Message:
    """Answers a `REVEAL` message with the seeds that a client shares with the dropped clients.

    Raises:
        ValueError: If the seeds would expose the client's own update.
    """
    asked = record_of(message.content)
    dropped = frozenset(field_of(asked, DROPPED))
    seeds, after = reveal(kept_secret(context), field_of(asked, ROUND), dropped)
    _keep(context, after)
    seeds_record = ConfigRecord({CLIENTS: list(seeds), SEEDS: list(seeds.values())})
    return Message(RecordDict({RECORD: seeds_record}), reply_to=message)


# the functions of the server


def read_key(greeting: RecordDict) -> bytes:
    """Returns the public key in a client's greeting, its first message.

    Raises:
        ValueError: If the greeting has no public key, or a public key of the wrong length.
    """
    key = field_of(record_of(greeting), PUBLIC)
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ValueError(f"message refused: a public key must have {KEY_BYTES} bytes")
    return key


def make_roster(
    server_round: int,
    keys: Mapping[int, bytes],
    weights: Mapping[int, float],
    limit: float,
) -> Roster:
    """Returns the roster of a round: the clients in the sum, and the share of each client.

    Args:
        server_round: The number of the round, from 1.
        keys: The public key of each client, by client.
        weights: The weight of each participant: its number of images, or equal numbers.
        limit: The range R: the largest absolute value of a number in an update.

    Returns:
        The roster, with shares in proportion to the weights.
    """
    total = sum(weights.values())
    members = [
        Member(client=client, share=weight / total, key=keys[client])
        for client, weight in sorted(weights.items())
    ]
    return Roster(round=server_round, members=tuple(members), limit=limit)


def write_roster(roster: Roster) -> ConfigRecord:
    """Returns a roster (the list of participants of a secure sum) as a record of an instruction."""
    return ConfigRecord(_values(roster))


def read_roster(instruction: RecordDict) -> Roster:
    """Returns the roster (the list of participants of a secure sum) in an instruction.

    Raises:
        ValueError: If the roster is missing, or if a client must not accept the roster.
    """
    return _roster(record_of(instruction))


def read_masked(reply: RecordDict, layout: Layout) -> Words:
    """Returns the masked words in a reply.

    Args:
        reply: The records of a client's reply.
        layout: The names and shapes of the tensors in the client's update.

    Returns:
        The W words, uint32 (W,).

    Raises:
        ValueError: If the reply has no masked words, or if the words belong to other tensors.
    """
    arrays = reply.array_records.get(messages.ARRAYS)
    array = None if arrays is None else arrays.get(messages.PACKED)
    if array is None or array.stype != MASKED_TYPE:
        raise ValueError("message refused: it contains no masked words")
    return unpack_words(array.data, layout)


def ask_for_seeds(roster: Roster, dropped: frozenset[int]) -> RecordDict:
    """Returns the records of a `REVEAL` message, which asks for seeds."""
    return RecordDict({RECORD: ConfigRecord({ROUND: roster.round, DROPPED: sorted(dropped)})})


def read_seeds(reply: RecordDict) -> Seeds:
    """Returns the seeds in the answer to a `REVEAL` message, one for each dropped client.

    Raises:
        ValueError: If the answer has no seeds, or seeds of the wrong length.
    """
    record = record_of(reply)
    clients, seeds = field_of(record, CLIENTS), field_of(record, SEEDS)
    if not (isinstance(clients, list) and isinstance(seeds, list) and len(clients) == len(seeds)):
        raise ValueError("message refused: it must name one client for each seed")
    if not all(isinstance(seed, bytes) and len(seed) == KEY_BYTES for seed in seeds):
        raise ValueError(f"message refused: a seed must have {KEY_BYTES} bytes")
    return dict(zip(clients, seeds, strict=True))


# records


def record_of(content: RecordDict) -> ConfigRecord:
    """Returns the record of the secure sum in a message."""
    if RECORD not in content.config_records:
        raise ValueError("message refused: its record of the secure sum is missing")
    return content.config_records[RECORD]


def field_of(record: ConfigRecord, name: str) -> Any:
    """Returns a value of the record of a secure sum."""
    if name not in record:
        raise ValueError(f"message refused: its record of a secure sum lacks {name!r}")
    return record[name]


def _values(roster: Roster) -> dict[str, Any]:
    return {
        ROUND: roster.round,
        LIMIT: roster.limit,
        CLIENTS: [member.client for member in roster.members],
        SHARES: [member.share for member in roster.members],
        KEYS: [member.key for member in roster.members],
    }


def _roster(record: ConfigRecord) -> Roster:
    rows = zip(*(field_of(record, name) for name in (CLIENTS, SHARES, KEYS)), strict=True)
    members = tuple(Member(client=client, share=share, key=key) for client, share, key in rows)
    return Roster(round=field_of(record, ROUND), members=members, limit=field_of(record, LIMIT))


def _keep(context: Context, secret: Secret) -> None:
    """Stores a client's secret and last roster in its context."""
    values: dict[str, Any] = {CLIENT: secret.client, PRIVATE: secret.private}
    if secret.roster is not None:
        values |= _values(secret.roster) | {DROPPED: sorted(secret.dropped)}
        values[TOLD] = secret.roster.told
    context.state[RECORD] = ConfigRecord(values)


def kept_secret(context: Context) -> Secret:
    """Returns the secret that `_keep` stored."""
    if RECORD not in context.state.config_records:
        raise ValueError(
            "this client has no keys for a secure sum, because it was not greeted in this run"
        )
    record = context.state.config_records[RECORD]
    summed = ROUND in record
    return Secret(
        client=field_of(record, CLIENT),
        private=field_of(record, PRIVATE),
        roster=replace(_roster(record), told=field_of(record, TOLD)) if summed else None,
        dropped=frozenset(field_of(record, DROPPED) if summed else ()),
    )
