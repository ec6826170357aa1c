"""Gives one instruction to a client's app in this process, without Flower's grid.

An audit uses this module to see what a client answers to an instruction that no honest server
sends. The message is written, folded, read and answered by the code of a real run.
"""

from __future__ import annotations

from functools import partial

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_vitlora.communication.compression import code
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.flower.strategies.checking import within_a_run
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import fold, unfold
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.round_message import RoundMessage, Writer
from fl_vitlora.flower.wire.state_record import state_in
from fl_vitlora.flower.wire.wiring import chance
from fl_vitlora.state import State

RUN, NODE = 1, 1  # Flower's ids of a run and a node, which matter only in a network


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
    worker = workspace(settings)
    content = Writer(worker.layout).write(instruction, worker.rank_of(client))
    config = content.config_records[messages.CONFIG]
    layouts = MessageLayouts.of(config, worker.layout, worker.rank_of(client))
    with within_a_run():
        message = Message(_folded(content, layouts), dst_node_id=NODE, message_type="train")
    node: dict[str, bool | float | int | str] = {"partition-id": client}
    context = Context(RUN, NODE, node, RecordDict({"state": ConfigRecord()}), {})
    try:
        reply = make_client_app(lambda _: settings)(message, context)
    except Exception as error:
        return str(error)
    opened = ServerEnd.open(unfold(reply.content), layouts)
    return state_in(
        opened.array_records.get(messages.ARRAYS), partial(layouts.of_reply, messages.ARRAYS)
    )


def _folded(content: RecordDict, layouts: MessageLayouts) -> RecordDict:
    """Writes the records of an instruction into one buffer; its tensors are coded exactly."""
    parts = {}
    for record, arrays in content.array_records.items():
        layout = layouts.of_record(record)
        tensors = state_in(arrays, partial(layouts.of_record, record))
        parts[record] = (code(tensors, layout, EXACT, chance(0)),)
    return fold(content, parts, {})
