"""Flower's records from and to states, and the bytes of a serialised message.

Between the two ends of the wire (`client_mod`, `server_end`) and what reads and writes messages,
all tensors of a record are one packed array (`communication.packing`); strategies made for Flower
see an `ArrayRecord` with one array for each tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from flwr.app import (
    Array,
    ArrayRecord,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM, KEY_NORM_BIT
from torch import Tensor

from fl_vitlora.communication.packing import Layout, pack, unpack
from fl_vitlora.errors import UserError
from fl_vitlora.state import State

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
BROADCAST = "broadcast"
REPORT = "report"
MERGED = "merged"
INCREMENTS = "increments"
PACKED = "packed"
PACKED_TYPE = "fl_vitlora.packed"

LEARNING_RATE = "learning-rate"
LOCAL_EPOCHS = "local-epochs"  # of one client in one round, where a strategy says so
SERVER_ROUND = "server-round"
PROXIMAL_MU = "proximal-mu"  # as Flower's FedProx calls it
FROZEN = "frozen"
SPARED = "spared"  # marks of the tensors that are not sent, as the client has them
SPARED_SINCE = "spared-since"  # the round in which it remembered them; 0 where it need not have
MERGED_RANKS = "merged-ranks"  # of merged pairs that are sent, by round and path; 0 for none
MERGES = "merges"  # of how many rounds the client is taken to have the pairs, and is to have them
STEPS = "steps"
TAKEN = "taken"  # the round of the last update that the server took of a client
CLIPPING_NORM = KEY_CLIPPING_NORM
CLIENT = "client"
CLASSES = "classes"  # their names, in the order in which the sender numbers them
SAMPLES = "num-examples"  # as Flower's strategies weight by default
LOSS = "train_loss"  # as Flower's QFedAvg expects it
NORM_BIT = KEY_NORM_BIT  # 1 where an update was clipped
EQUAL_WEIGHT = "equal-weight"  # is 1 for every client, so that strategies can weight by it
ACCURACY, EVALUATION_LOSS = "accuracy", "eval_loss"  # shown to strategies of Flower
VIEWS = "views"
LARGEST_EXACT = 2.0**53  # up to which every whole number is a float
ACCURACY_OF, LOSS_OF = "accuracy/", "loss/"  # of a view of the test images


Scalar = int | float | str | bytes | bool
ConfigValue = Scalar | list[int] | list[float] | list[str] | list[bytes] | list[bool]


def to_packed(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Packs a state into one array."""
    data = pack(state)
    return ArrayRecord({PACKED: Array("uint8", (len(data),), PACKED_TYPE, data)})


def from_packed(content: RecordDict, layout: Layout, record: str = ARRAYS) -> State:
    """Reads the state out of a message, or out of a client's context.

    Raises:
        ValueError: When the message carries none, or one of other tensors.
    """
    arrays = content.array_records.get(record)
    array = None if arrays is None else arrays.get(PACKED)
    if array is None or array.stype != PACKED_TYPE:
        raise ValueError("message refused: it carries no packed state")
    return unpack(array.data, layout)


def to_arrays(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Writes a state as Flower's strategies know it."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def from_arrays(arrays: ArrayRecord, layout: Layout) -> State:
    """Reads what a Flower strategy returned, in the layout's order, as float32.

    Raises:
        UserError: When it lacks a tensor or changed a shape.
    """
    import torch

    given = arrays.to_torch_state_dict()
    for name, shape in layout.shapes:
        if name not in given or tuple(given[name].shape) != shape:
            raise UserError(f"the strategy returned no tensor {name!r} of shape {shape}")
    return {name: given[name].to(torch.float32) for name, _ in layout.shapes}


def metrics_of(content: RecordDict) -> MetricRecord:
    """Finds the metrics of a reply.

    Raises:
        ValueError: When it carries none.
    """
    if METRICS not in content.metric_records:
        raise ValueError("message refused: it carries no metrics")
    return content.metric_records[METRICS]


def class_names_of(content: RecordDict) -> tuple[str, ...]:
    """Reads the names of the classes in a greeting.

    Raises:
        ValueError: When it has none.
    """
    record = content.config_records.get(CONFIG)
    names = None if record is None else record.get(CLASSES)
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(str(name) for name in names)
    raise ValueError("message refused: it does not name the sender's classes")


def scalar(metrics: MetricRecord, name: str) -> float:
    """Reads one number of a metric record.

    Raises:
        ValueError: When it is missing, a list or infinite.
    """
    value = metrics.get(name)
    if isinstance(value, int | float) and not math.isinf(value):
        return value
    raise ValueError(f"message refused: metric {name!r} is {value!r}, not a number")


def whole(metrics: MetricRecord, name: str) -> int:
    """Reads one whole number of a metric record, to its last digit.

    Raises:
        ValueError: When it is missing, or anything but a whole number.
    """
    value = scalar(metrics, name)
    if isinstance(value, int) or (abs(value) < LARGEST_EXACT and value.is_integer()):
        return int(value)
    raise ValueError(f"message refused: metric {name!r} is {value!r}, not a whole number")
