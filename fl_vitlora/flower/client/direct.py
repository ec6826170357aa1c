"""Gives messages to a client's app in this process, without Flower's grid.

An audit uses this module to see what a client answers to messages that no honest server sends. The
messages are written, folded, read and answered by the code of a real run.
"""

from __future__ import annotations

from functools import partial

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_vitlora.communication.compression import code
from fl_vitlora.communication.fixed_point import Words
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.flower.strategies.checking import within_a_run
from fl_vitlora.flower.wire import masking, messages, vouching
from fl_vitlora.flower.wire.folding import Unfolded, fold, unfold
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.round_message import RoundMessage, Writer
from fl_vitlora.flower.wire.state_record import state_in
from fl_vitlora.flower.wire.wiring import chance
from fl_vitlora.privacy.agreement import Signatures
from fl_vitlora.privacy.secure_sum import Roster, Seeds
from fl_vitlora.state import State

RUN, NODE = 1, 1  # Flower's ids of a run and a node, which matter only in a network


class DirectClient:
    """A client of a new run, which has the same memory between messages as in a real run.

    If the client refuses a message, the method returns the client's reason as a text. A client
    refuses with a ValueError. Any other exception is a fault of the program: it is not caught, so
    that an audit never counts a crash as a refusal.

    Args:
        settings: The settings of the client.
        client: The number of the client.
    """

    def __init__(self, settings: ClientSettings, client: int) -> None:
        self._settings, self._client = settings, client
        self._app = make_client_app(lambda _: settings)
        node: dict[str, bool | float | int | str] = {"partition-id": client}
        self._context = Context(RUN, NODE, node, RecordDict({"state": ConfigRecord()}), {})

    def key(self) -> bytes:
        """Greets the client, and returns its public key for secure sums.

        Raises:
            ValueError: If the client sends no key.
        """
        return masking.read_key(self._asked("query", RecordDict()))

    def vouch(self, roster: Roster) -> bytes | str:
        """Asks the client to sign a roster."""
        try:
            return vouching.read_signature(
                self._asked(vouching.VOUCH, vouching.ask_to_sign(roster))
            )
        except ValueError as error:
            return str(error)

    def reveal(self, roster: Roster, dropped: frozenset[int]) -> Seeds | str:
        """Asks the client for the seeds that it shares with clients that dropped out."""
        try:
            question = masking.ask_for_seeds(roster, dropped)
            return masking.read_seeds(self._asked(masking.REVEAL, question))
        except ValueError as error:
            return str(error)

    def update(self, instruction: RoundMessage) -> State | str:
        """Lets the client train, and returns its update as the server decodes it."""
        answer = self._trained(instruction, {})
        if isinstance(answer, str):
            return answer
        content, layouts = answer
        arrays = content.array_records.get(messages.ARRAYS)
        return state_in(arrays, partial(layouts.of_reply, messages.ARRAYS))

    def masked(
        self, instruction: RoundMessage, roster: Roster, signatures: Signatures
    ) -> Words | str:
        """Lets the client train for a secure sum, and returns its masked words."""
        record = vouching.write_signed(roster, signatures)
        answer = self._trained(instruction, {masking.RECORD: record})
        if isinstance(answer, str):
            return answer
        layout = workspace(self._settings).layout
        return masking.read_masked(
            answer[0], layout.without(layout.ending_with(instruction.frozen))
        )

    def _trained(
        self, instruction: RoundMessage, more: dict[str, ConfigRecord]
    ) -> tuple[RecordDict, MessageLayouts] | str:
        """Sends an instruction with further records.

        Returns:
            The decoded reply, and the names and shapes of its tensors. If the client refuses the
            instruction, a text with the reason.
        """
        worker = workspace(self._settings)
        rank = worker.rank_of(self._client)
        content = Writer(worker.layout).write(instruction, rank)
        for name, record in more.items():
            content[name] = record
        config = content.config_records[messages.CONFIG]
        layouts = MessageLayouts.of(config, worker.layout, rank)
        try:
            reply = self._sent("train", folded(content, layouts))
        except ValueError as error:
            return str(error)
        return ServerEnd.open(reply, layouts), layouts

    def _asked(self, kind: str, content: RecordDict) -> RecordDict:
        return ServerEnd.open(self._sent(kind, fold(content, {}, {})))

    def _sent(self, kind: str, content: RecordDict) -> Unfolded:
        with within_a_run():
            message = Message(content, dst_node_id=NODE, message_type=kind)
        return unfold(self._app(message, self._context).content)


def answer(settings: ClientSettings, client: int, instruction: RoundMessage) -> State | str:
    """Returns the answer of a client without memory to one instruction to train.

    Args:
        settings: The settings of the client.
        client: The number of the client.
        instruction: The instruction, with any tensors and scalars.

    Returns:
        The update as the server decodes it. If the client refuses the instruction, a text with the
        reason.
    """
    return DirectClient(settings, client).update(instruction)


def folded(content: RecordDict, layouts: MessageLayouts) -> RecordDict:
    """Writes the records of an instruction into one buffer; its tensors are coded exactly."""
    parts = {}
    for record, arrays in content.array_records.items():
        layout = layouts.of_record(record)
        tensors = state_in(arrays, partial(layouts.of_record, record))
        parts[record] = (code(tensors, layout, EXACT, chance(0)),)
    return fold(content, parts, {})
