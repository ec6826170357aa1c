"""Counts the bytes of messages: bytes that are not tensors, and bytes of full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor

from fl_vitlora.communication.compression import code
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.reference import MessageSizes
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import fold
from fl_vitlora.flower.wire.serialised import object_bytes
from fl_vitlora.flower.wire.wiring import chance

SOME_NODE = 2**63 - 1  # an id with as many digits as Flower's random node ids


def overhead_of(message: Message, groups: Mapping[str, int]) -> int:
    """Returns the number of bytes that Flower sends for a message in addition to coded tensors.

    Flower sends a message as nested objects, each in a separate request or response; the metadata
    is one of the objects. `tests/experiment/test_deployment.py` counts the bytes of messages in a
    real deployment and finds the same number. The number does not include HTTP and protobuf frames,
    the trees of object ids with which a node asks for a message, heartbeats, and the app itself.

    Args:
        message: The message as it is sent, with its metadata set.
        groups: The number of bytes of the coded tensors in the message, by group of tensors.
    """
    return object_bytes(message) - sum(groups.values())


def reference_sizes(state: Mapping[str, Tensor], class_names: Sequence[str]) -> MessageSizes:
    """Computes the sizes of the messages of full fine-tuning with FedAvg.

    The function builds the messages but sends none.

    A message of a real run may differ by some bytes, because the numbers in it may have more or
    fewer digits.

    Args:
        state: All parameters of the plain model, by name.
        class_names: The names of the classes, which every greeting contains.
    """
    question = Message(
        fold(RecordDict(), {}, {}), dst_node_id=SOME_NODE, message_type=MessageType.QUERY
    )
    metrics = MetricRecord({messages.CLIENT: 1, messages.SAMPLES: 1})
    names = ConfigRecord({messages.CLASSES: list(class_names)})
    content = RecordDict({messages.METRICS: metrics, messages.CONFIG: names})
    greeting = Message(fold(content, {}, {}), reply_to=question)
    downlink, uplink = model_bytes(state)
    return MessageSizes(
        question=object_bytes(question),
        greeting=object_bytes(greeting),
        downlink=downlink,
        uplink=uplink,
    )


def model_bytes(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Computes the sizes of the two messages of a round that contain a whole state in float32.

    Args:
        state: The tensors by name.

    Returns:
        The size of the message to a client in bytes, and the size of the reply in bytes.
    """
    tensors = {name: tensor.float() for name, tensor in state.items()}
    parts = {messages.ARRAYS: (code(tensors, Layout.of(tensors), EXACT, chance(0)),)}
    config = ConfigRecord({SERVER_ROUND: 1, LEARNING_RATE: 1e-3})
    metrics = MetricRecord({messages.SAMPLES: 1, messages.LOSS: 1.0, messages.STEPS: 1})
    down = Message(
        fold(RecordDict({messages.CONFIG: config}), parts, {}),
        dst_node_id=SOME_NODE,
        message_type=MessageType.TRAIN,
    )
    up = Message(fold(RecordDict({messages.METRICS: metrics}), parts, {}), reply_to=down)
    return object_bytes(down), object_bytes(up)
