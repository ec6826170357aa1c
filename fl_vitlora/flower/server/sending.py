"""Encodes the server's instructions before they are sent, and decodes the updates of clients.

Tensors for many clients are sent as a stream: a message contains only the changes since the version
that the client has. Clients of one rank share a stream. If a client did not answer, the server does
not know which version the client has. The next message to this client then contains all changes
since the initial tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from flwr.app import ArrayRecord, RecordDict

from fl_vitlora.communication.compression import code, decode
from fl_vitlora.communication.lanes import EXACT, Lanes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Part
from fl_vitlora.communication.stream import Stream
from fl_vitlora.config import Config
from fl_vitlora.federation.client_records import ClientRecords
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import Unfolded, fold, group_bytes
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.state_record import StateRecord, state_in
from fl_vitlora.flower.wire.wiring import chance, lanes_of
from fl_vitlora.lowrank import cut
from fl_vitlora.population.ranks import rank_of
from fl_vitlora.state import State, clip_norm, scale
from fl_vitlora.storage.trees import Tree
from fl_vitlora.strategy import Update

Place = tuple[str, int | None]  # the record and the rank of a stream
Changes = tuple[int, tuple[Part, ...]]  # see `Stream.since`
STREAMED = (messages.ARRAYS, messages.BROADCAST)  # all other records are sent without a stream


@dataclass(frozen=True, kw_only=True)
class Addressed:
    """The records of a message and the client to which they are sent.

    Attributes:
        client: The number of the client.
        content: The records of the message.
    """

    client: int
    content: RecordDict


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """An encoded message to one client, ready to be sent.

    Attributes:
        folded: The records, written into one buffer by `fold`.
        groups: The number of bytes of the coded tensors, by group of tensors.
        layouts: The names and shapes of the tensors in the message and in the reply.
    """

    folded: RecordDict
    groups: Mapping[str, int]
    layouts: MessageLayouts


@dataclass(frozen=True)
class _Shared:
    """A cache of the objects that several messages of one round share.

    Attributes:
        layouts: One instance of `MessageLayouts` for all messages with equal layouts.
        coded: The coded tensors of records that several messages share, by record and layout.
        folded: The buffers that `fold` wrote, by their contents.
        advanced: For each stream, the record whose tensors were the target of its last change.
        changes: The results of `Stream.since`, by stream, its version and the client's version.
    """

    layouts: dict[MessageLayouts, MessageLayouts] = field(default_factory=dict)
    coded: dict[tuple[int, Layout], tuple[Part, ...]] = field(default_factory=dict)
    folded: dict[object, bytes] = field(default_factory=dict)
    advanced: dict[Place, ArrayRecord] = field(default_factory=dict)
    changes: dict[tuple[Place, int, int], Changes] = field(default_factory=dict)


class ServerEnd:
    """Encodes the messages to clients, and decodes their replies.

    Args:
        initial: The exchanged tensors before the first round.
        config: The configuration of the experiment.
        records: The server's records of the clients.
    """

    def __init__(self, initial: State, config: Config, records: ClientRecords) -> None:
        self._initial = initial
        self._layout = Layout.of(initial)
        self._config = config
        self._streams: dict[Place, Stream] = {}
        self._records = records

    @property
    def lanes(self) -> Lanes:
        """Returns the codec and the sending interval of each group of tensors in instructions."""
        return lanes_of(self._config.compression.downlink)

    @cached_property
    def cached_names(self) -> frozenset[str]:
        """Returns the tensors that may be left out of messages to clients that already have them.

        With lossy downlink codecs no tensor is left out: the server sends streams, which contain
        only changes anyway. A tensor of a group that clients send only in some rounds is not left
        out either: the client's tensor may then differ from the tensor that the server assumes.
        """
        uplink = lanes_of(self._config.compression.uplink)
        names = self._layout.names if self.lanes.exact else ()
        return frozenset(name for name in names if uplink.of(name).every == 1)

    def seal(self, server_round: int, addressed: Sequence[Addressed]) -> list[Sealed]:
        """Encodes the messages to clients.

        Args:
            server_round: The number of the round, from 1; 0 before the first round.
            addressed: The client and the records of each message.

        Returns:
            The encoded messages, in the order of `addressed`.
        """
        shared = _Shared()
        return [self._seal(server_round, one, shared) for one in addressed]

    def _seal(self, server_round: int, one: Addressed, shared: _Shared) -> Sealed:
        """Encodes the message to one client."""
        layouts = self._layouts_of(one, shared)
        followed = self._records.of(one.client).followed
        versions: dict[str, tuple[int, int]] = {}
        parts: dict[str, tuple[Part, ...]] = {}
        for record, arrays in one.content.array_records.items():
            layout = layouts.of_record(record)
            tensors = state_in(arrays, partial(layouts.of_record, record))
            if record in STREAMED and not self.lanes.exact:
                place = record, layouts.rank
                if shared.advanced.get(place) is not arrays:  # other tensors than the last target
                    shared.advanced[place] = arrays
                    self._advance(server_round, place, tensors)
                _, known = followed.get(record, (0, 0))
                base, parts[record] = self._since(place, known, shared)
                versions[record] = (base, self._streams[place].version)
                continue
            key = (id(arrays), layout)
            if key not in shared.coded:
                shared.coded[key] = (code(tensors, layout, EXACT, chance(0)),)
            parts[record] = shared.coded[key]
        self._records.offer(one.client, versions)
        folded = fold(one.content, parts, versions, shared.folded)
        return Sealed(folded=folded, groups=group_bytes(one.content, parts), layouts=layouts)

    def _layouts_of(self, one: Addressed, shared: _Shared) -> MessageLayouts:
        """Returns the layouts of a message; messages with equal layouts share one instance."""
        config = one.content.config_records[messages.CONFIG]
        layouts = MessageLayouts.of(config, self._layout, rank_of(self._config, one.client))
        return shared.layouts.setdefault(layouts, layouts)

    def _advance(self, server_round: int, place: Place, target: State) -> None:
        """Adds the change towards `target` to the stream that all clients of one rank share."""
        record, rank = place
        stream = self._streams.get(place) or Stream.of(self._first(record, rank))
        config = self._config
        self._streams[place] = stream.advance(
            target,
            self.lanes,
            self.lanes.open(target, server_round, config.rounds),
            chance(config.seed, "downlink", record, rank or 0, stream.version),
        )

    def _since(self, place: Place, version: int, shared: _Shared) -> Changes:
        """Returns the changes of a stream for all clients of one version; see `Stream.since`."""
        stream = self._streams[place]
        key = (place, stream.version, version)
        if key not in shared.changes:
            shared.changes[key] = stream.since(version)
        return shared.changes[key]

    def _first(self, record: str, rank: int | None) -> State:
        """Returns the state of every client of one rank before the first change of a stream."""
        first = cut(self._initial, rank)
        return first if record == messages.ARRAYS else scale(first, 0.0)

    @staticmethod
    def open(unfolded: Unfolded, layouts: MessageLayouts | None = None) -> RecordDict:
        """Decodes the reply of a client. A tensor that the reply lacks gets a change of zero.

        Args:
            unfolded: The records of the reply, in which tensors are still coded.
            layouts: The names and shapes of the tensors in the message that the client answers, and
                in the reply; None if the reply must not hold tensors.

        Returns:
            The records, with complete tensors.

        Raises:
            ValueError: If the reply holds tensors that the server did not ask for.
        """
        content, parts, _ = unfolded
        for record, coded in parts.items():
            if layouts is None or len(coded) != 1:
                raise ValueError(
                    "message refused: expected one part for each record that was asked for, "
                    f"got {len(coded)} parts for record {record!r}"
                )
            layout = layouts.of_reply(record)
            moved = decode(coded[0], layout)
            content[record] = StateRecord(
                {n: moved[n] if n in moved else torch.zeros(shape) for n, shape in layout.shapes}
            )
        return content

    def bounded(self, update: Update, norm: float | None) -> Update:
        """Clips a decoded update to the clipping norm of the clients.

        A client clips its update before the codec adds the unsent part of earlier updates.
        Therefore the norm of the decoded update may exceed the clipping norm. The noise of
        differential privacy is scaled for the clipping norm, so the server clips again. Updates
        that are sent without a lossy codec stay as the client sent them.

        Args:
            update: The decoded update.
            norm: The norm to which clients clip their updates; None if clients do not clip.
        """
        if norm is None or lanes_of(self._config.compression.uplink).exact:
            return update
        delta, _ = clip_norm(update.delta, norm)
        return replace(update, delta=delta)

    def snapshot(self) -> Tree:
        """Returns the state of all streams, for a checkpoint."""
        return [[*place, stream.snapshot()] for place, stream in self._streams.items()]

    def restore(self, tree: Tree) -> None:
        """Restores the streams that `snapshot` returned."""
        self._streams = {
            (record, rank): Stream.of(self._first(record, rank)).restored(stream)
            for record, rank, stream in tree
        }
