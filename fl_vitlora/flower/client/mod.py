"""A Flower mod (client plug-in) that decodes and encodes a client's messages.

The mod reads and decodes an instruction before the app gets it, so that the app sees complete
float32 tensors. When the app has answered, the mod encodes the app's update and writes it into one
buffer. The client's Flower context keeps the memory of the codecs: the tensors of each stream (a
series of compressed changes from the server), and the part of the updates that was not sent
(`context_state`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fl_vitlora.communication.compression import compress, decode, is_exact
from fl_vitlora.communication.lanes import Lanes
from fl_vitlora.communication.parcel import Part
from fl_vitlora.communication.stream import follow
from fl_vitlora.flower.client import context_state
from fl_vitlora.flower.client.workspace import (
    ClientSettings,
    SettingsOf,
    Workspace,
    client_of,
    workspace,
)
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import fold, unfold
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.round_message import RoundMessage, read_scalars
from fl_vitlora.flower.wire.state_record import StateRecord, holds_state, state_in
from fl_vitlora.flower.wire.wiring import chance, lanes_of
from fl_vitlora.lowrank import cut
from fl_vitlora.state import State, add, scale


def make_mod(settings_of: SettingsOf) -> Mod:
    """Makes the mod (plug-in) that runs before and after every function of the client app.

    Args:
        settings_of: A function that returns the settings of a client.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        content, parts, versions = unfold(message.content)
        end = ClientEnd(settings=settings_of(context), context=context, asked=content)
        for record in {**parts, **versions}:
            content[record] = StateRecord(
                end.decoded(record, parts.get(record, ()), versions.get(record))
            )
        opened = copy.copy(message)
        opened.content = content
        reply = call_next(opened, context)
        if reply.has_content():
            reply.content = end.folded(reply.content)
        return reply

    return mod


@dataclass(frozen=True, kw_only=True)
class ClientEnd:
    """Decodes one instruction to a client, and encodes the client's reply.

    Attributes:
        settings: The settings of the client.
        context: The client's Flower context, which is the client's memory between rounds.
        asked: The records of the instruction.
    """

    settings: ClientSettings
    context: Context
    asked: RecordDict

    @cached_property
    def scalars(self) -> RoundMessage:
        """Returns the scalars of the instruction, without its tensors."""
        return read_scalars(self._config)

    @cached_property
    def layouts(self) -> MessageLayouts:
        """Returns the names and shapes of the tensors in the instruction and in the update."""
        rank = self.worker.rank_of(client_of(self.context))
        return MessageLayouts.of(self._config, self.worker.layout, rank)

    @property
    def _config(self) -> ConfigRecord:
        return self.asked.config_records.get(messages.CONFIG, ConfigRecord())

    @property
    def worker(self) -> Workspace:
        """Returns the worker's workspace, which contains the model and the names of its tensors."""
        return workspace(self.settings)

    @property
    def lanes(self) -> Lanes:
        """Returns the codec and the sending interval of each group of tensors in an update."""
        return lanes_of(self.settings.config.compression.uplink)

    def decoded(
        self, record: str, parts: tuple[Part, ...], versions: tuple[int, int] | None
    ) -> State:
        """Decodes the tensors of one record of the instruction.

        Args:
            record: The name of the record.
            parts: The coded tensors of the record.
            versions: The version of the stream before the changes in `parts`, and the version after
                these changes; None if the record is not a stream.

        Raises:
            ValueError: If the tensors do not fit the model, or do not follow the client's version
                of the stream.
        """
        layout = self.layouts.of_record(record)
        if versions is None:
            if len(parts) != 1:
                raise ValueError(
                    f"message refused: record {record!r} must be one part, got {len(parts)} parts"
                )
            if not is_exact(parts[0]):  # decoding an exact part needs no more memory than its size
                raise ValueError(
                    f"message refused: record {record!r} must be coded without loss or sent as a "
                    "stream"
                )
            tensors = decode(parts[0], layout)
        else:
            held = self._follow(record, parts, versions)
            tensors = {name: held[name] for name in layout.names}
        trains = record == messages.ARRAYS and self.scalars.views is None
        return self._with_progress(tensors) if trains else tensors

    def _follow(self, record: str, parts: tuple[Part, ...], versions: tuple[int, int]) -> State:
        """Applies the received changes to the client's tensors, and stores the new tensors."""
        known, new = versions
        layout = self.layouts.whole
        if known > 0:
            before = context_state.held(self.context, record, known, layout)
        else:
            initial = self.worker.initial_of(client_of(self.context))
            first = cut({name: initial[name] for name in layout.names}, self.layouts.rank)
            before = first if record == messages.ARRAYS else scale(first, 0.0)
        held = follow(before, known, parts, layout)
        context_state.hold(self.context, record, new, held)
        return held

    def _with_progress(self, tensors: State) -> State:
        """Adds the client's unsent changes to the tensors that it sends only every n-th round."""
        owed = self._owed(messages.ARRAYS)
        resting = {n: t for n, t in owed.items() if n in tensors and self.lanes.of(n).every > 1}
        return tensors | add({n: tensors[n] for n in resting}, resting)

    def folded(self, content: RecordDict) -> RecordDict:
        """Encodes the records of the reply, and writes them into one buffer."""
        parts = {
            record: (self._encoded(record, arrays),)
            for record, arrays in content.array_records.items()
            if holds_state(arrays)
        }
        return fold(content, parts, {})

    def _encoded(self, record: str, arrays: ArrayRecord) -> Part:
        """Encodes the tensors of one record of the update, and stores the part that is not sent."""
        layout = self.layouts.of_reply(record)
        config, server_round = self.settings.config, self.scalars.round
        client = client_of(self.context)
        travelling = self.lanes.open(layout.names, server_round, config.rounds)
        part, withheld = compress(
            state_in(arrays, lambda: layout),
            self._owed(record),
            layout,
            lanes=self.lanes,
            travelling=travelling,
            draw=chance(config.seed, "uplink", record, server_round, client),
        )
        if not config.compression.error_feedback:
            withheld = {n: t for n, t in withheld.items() if n not in travelling}
        ordered = {n: withheld[n] for n in self.worker.layout.names if n in withheld}
        context_state.withhold(self.context, record, server_round, ordered)
        return part

    def _owed(self, record: str) -> State:
        """Returns the unsent part of earlier updates, without tensors that are overwritten.

        A measurement minus the server's value already contains all that earlier rounds did not
        send. Only if a tensor is not sent in every round, its unsent part counts as the client's
        own progress (`_with_progress`).
        """
        overwritten = (*self.scalars.restarted, *self.settings.strategy.rebased)
        measured = self.worker.method.measured
        return {
            name: tensor
            for name, tensor in self._withheld(record).items()
            if not name.endswith(overwritten)
            and not (measured and name.endswith(measured) and self.lanes.of(name).every == 1)
        }

    def _withheld(self, record: str) -> State:
        """Returns the unsent part of a record, up to the last update that the server used."""
        layout, taken = self.layouts.whole, self.scalars.taken
        return context_state.withheld(self.context, record, layout, taken)
