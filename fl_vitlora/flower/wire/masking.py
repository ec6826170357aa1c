"""The secure sum in Flower's records: what stands in its messages, and what a client keeps of it.

    greeting   client → server   its public key
    training   server → client   the roster, beside the instruction
               client → server   masked words, instead of tensors and loss
    reveal     server → client   the round, and who dropped out of it; only if somebody did
               client → server   its seeds with those

In its Flower context a client keeps its private key, its last roster and whose seeds it has given
away: that is how it knows not to mask, or to reveal, what would betray it.
"""

from __future__ import annotations

from collections.abc import Mapping
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

from fl_vitlora.communication.fixed_point import Words, decode, encode, pack_words, unpack_words
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
from fl_vitlora.strategy import SEVERAL, Update

RECORD = "secure-sum"  # in messages, and in a client's context
MASKED_TYPE = "fl_vitlora.masked"
REVEAL = f"{MessageType.QUERY}.reveal"

PUBLIC, PRIVATE, CLIENT, ROUND = "public-key", "private-key", "client", "round"
CLIENTS, SHARES, KEYS, LIMIT = "clients", "shares", "keys", "range"
DROPPED, SEEDS = "dropped", "seeds"


# a client's end


def introduce(context: Context, client: int) -> ConfigRecord:
    """Draws a client's keys, once in a run, and keeps them.

    A client that is greeted again keeps its keys, and what it knows of the sums that it was in: new
    masks over the update of a round that it has sent already would betray that update.

    Args:
        context: Where.
        client: Its number.

    Returns:
        What its greeting says of it, under `RECORD`: the public key.
    """
    known = RECORD in context.state.config_records
    secret = _kept(context) if known else draw_secret(client)
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
) -> ArrayRecord:
    """Masks a client's update for the sum of the round.

    Args:
        context: Of the client.
        instruction: With the roster.
        delta: What training changed.
        report: What the strategy sends beside it, or nothing.
        loss: Mean training loss.
        limit: Range R of the fixed point numbers.

    Returns:
        What it sends in place of its tensors.

    Raises:
        ValueError: If it has not greeted, the instruction brings no roster or one that the client
            cannot accept, or the update is not finite.
    """
    secret, roster = _kept(context), read_roster(instruction)
    if roster.limit != limit:
        raise ValueError(
            f"the server sums in a range of {roster.limit:g}, this client is to send in one of "
            f"{limit:g}; privacy.range must be the same everywhere"
        )
    share = roster.of(secret.client).share
    words = encode(delta, report, loss, limit=limit, share=share)
    masked, after = contribute(secret, roster, words)
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
) -> RecordDict:
    """Writes a client's reply: masked words, and in the open what the server may know.

    Args:
        context: Of the client.
        instruction: With the roster.
        delta: What training changed.
        report: What the strategy sends beside it, or nothing.
        loss: Mean training loss, which is masked too.
        steps: Of the optimiser.
        limit: Range R of the fixed point numbers.

    Raises:
        ValueError: As `hide` does.
    """
    arrays = hide(context, instruction, delta, report, loss, limit=limit)
    metrics = MetricRecord({messages.STEPS: steps})
    return RecordDict({messages.ARRAYS: arrays, messages.METRICS: metrics})


def answer(message: Message, context: Context) -> Message:
    """Reveals a client's seeds with those who dropped out; all that the app does on `REVEAL`.

    Raises:
        ValueError: If the client cannot do so without betraying itself.
    """
    asked = _record(message.content)
    dropped = frozenset(_field(asked, DROPPED))
    seeds, after = reveal(_kept(context), _field(asked, ROUND), dropped)
    _keep(context, after)
    told = ConfigRecord({CLIENTS: list(seeds), SEEDS: list(seeds.values())})
    return Message(RecordDict({RECORD: told}), reply_to=message)


# the server's end


def read_key(greeting: RecordDict) -> bytes:
    """Finds a client's public key in its greeting.

    Raises:
        ValueError: If it brings none.
    """
    key = _field(_record(greeting), PUBLIC)
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise ValueError(f"message refused: a public key has {KEY_BYTES} bytes")
    return key


def make_roster(
    server_round: int,
    keys: Mapping[int, bytes],
    weights: Mapping[int, float],
    limit: float,
) -> Roster:
    """Lists who shall sum up.

    Args:
        server_round: From 1.
        keys: Public keys by client.
        weights: By participant: images, or all the same.
        limit: Range R of the fixed point numbers.

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
    """Writes a roster for an instruction, where it stands under `RECORD`."""
    return ConfigRecord(_values(roster))


def read_roster(instruction: RecordDict) -> Roster:
    """Finds the roster in an instruction.

    Raises:
        ValueError: If there is none, or one that no client should accept.
    """
    return _roster(_record(instruction))


def read_masked(reply: RecordDict, layout: Layout) -> Words:
    """Finds the masked words in a reply.

    Args:
        reply: Of a client.
        layout: Of its delta.

    Returns:
        uint32 (W,).

    Raises:
        ValueError: If it brings none, or words of other tensors.
    """
    arrays = reply.array_records.get(messages.ARRAYS)
    array = None if arrays is None else arrays.get(messages.PACKED)
    if array is None or array.stype != MASKED_TYPE:
        raise ValueError("message refused: it carries no masked words")
    return unpack_words(array.data, layout)


def ask_for_seeds(roster: Roster, dropped: frozenset[int]) -> RecordDict:
    """Writes the question of the second exchange; its message type is `REVEAL`."""
    return RecordDict({RECORD: ConfigRecord({ROUND: roster.round, DROPPED: sorted(dropped)})})


def read_seeds(reply: RecordDict) -> Seeds:
    """Reads the answer.

    Raises:
        ValueError: If there is none.
    """
    record = _record(reply)
    clients, seeds = _field(record, CLIENTS), _field(record, SEEDS)
    if not (isinstance(clients, list) and isinstance(seeds, list) and len(clients) == len(seeds)):
        raise ValueError("message refused: it does not say whose seeds it brings")
    if not all(isinstance(seed, bytes) and len(seed) == KEY_BYTES for seed in seeds):
        raise ValueError(f"message refused: a seed has {KEY_BYTES} bytes")
    return dict(zip(clients, seeds, strict=True))


def open_sum(
    total: Words,
    roster: Roster,
    layout: Layout,
    *,
    samples: Mapping[int, int],
    steps: Mapping[int, int],
    population: int,
) -> tuple[Update, int]:
    """Makes an update of a sum.

    Args:
        total: As `secure_sum.add_up` returned it.
        roster: Of the sum.
        layout: Of the deltas in it.
        samples: Images of each client that is in the sum.
        steps: Optimiser steps that each took.
        population: How many clients there are in all.

    Returns:
        The mean, weighted by the shares, and how many scalars were clipped to the range.
    """
    left = frozenset(samples)
    share = roster.share(left)
    mean = decode(total, layout, limit=roster.limit, share=share)
    update = Update(
        client=SEVERAL,
        samples=sum(samples.values()),
        loss=mean.loss,
        delta=mean.delta,
        steps=round(sum(roster.of(client).share * steps[client] for client in left) / share),
        report=mean.report,
        members=len(left),
        population=population,
    )
    return update, mean.clipped


# records


def _record(content: RecordDict) -> ConfigRecord:
    if RECORD not in content.config_records:
        raise ValueError("message refused: it says nothing of a secure sum")
    return content.config_records[RECORD]


def _field(record: ConfigRecord, name: str) -> Any:
    if name not in record:
        raise ValueError(f"message refused: what it says of a secure sum lacks {name!r}")
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
    rows = zip(*(_field(record, name) for name in (CLIENTS, SHARES, KEYS)), strict=True)
    members = tuple(Member(client=client, share=share, key=key) for client, share, key in rows)
    return Roster(round=_field(record, ROUND), members=members, limit=_field(record, LIMIT))


def _keep(context: Context, secret: Secret) -> None:
    """Stores what a client must remember in its context."""
    values: dict[str, Any] = {CLIENT: secret.client, PRIVATE: secret.private}
    if secret.roster is not None:
        values |= _values(secret.roster) | {DROPPED: sorted(secret.dropped)}
    context.state[RECORD] = ConfigRecord(values)


def _kept(context: Context) -> Secret:
    """Finds what `_keep` stored."""
    if RECORD not in context.state.config_records:
        raise ValueError("this client has no keys for a secure sum; it was not greeted")
    record = context.state.config_records[RECORD]
    summed = ROUND in record
    return Secret(
        client=_field(record, CLIENT),
        private=_field(record, PRIVATE),
        roster=_roster(record) if summed else None,
        dropped=frozenset(_field(record, DROPPED) if summed else ()),
    )
