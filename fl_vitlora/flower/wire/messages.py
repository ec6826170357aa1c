"""The names of records and of values in messages, and conversions of records to tensors and back.

A packed record holds all its tensors as one array (`communication.packing`). A client stores
tensors in packed records, and other Flower mods see packed records in messages (`state_record`).
Flower's own strategies see an `ArrayRecord` with one array for each tensor.
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

FROZEN = "frozen"
RESTARTED = "restarted"  # endings of the names of tensors that start each round at initial values
CACHED = "spared"  # bit mask of the tensors that the client already has
CACHED_SINCE = "spared-since"  # the round in which the client stored these tensors; 0 at the start
MERGED_RANKS = "merged-ranks"  # ranks of the pairs that are sent, by round and path; 0: no pair
MERGES = "merges"  # the client's number of merged rounds, before and after the message
STEPS = "steps"
TAKEN = "taken"  # the round of the client's last update that the server used
CLIPPING_NORM = KEY_CLIPPING_NORM
CLIENT = "client"
CLASSES = "classes"  # the names of the classes, in the order of the sender's labels
SAMPLES = "num-examples"  # the number by which Flower's strategies weight clients by default
LOSS = "train_loss"  # the name that Flower's QFedAvg expects
NORM_BIT = KEY_NORM_BIT  # 1 if the update was clipped, else 0
EQUAL_WEIGHT = "equal-weight"  # 1 for every client, for strategies that weight all clients equally
ACCURACY, EVALUATION_LOSS = "accuracy", "eval_loss"  # results that Flower's strategies can read
VIEWS = "views"
MOST = "most"  # the number of images on which a client evaluates a model; if missing, all images
LARGEST_EXACT = 2.0**53  # up to this number, a float holds every whole number exactly
ACCURACY_OF, LOSS_OF = "accuracy/", "loss/"  # each is followed by the name of a view of images
VALIDATION_SAMPLES = "num-examples/validation"


def to_packed(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Packs tensors into a record with one array."""
    data = pack(state)
    return ArrayRecord({PACKED: Array("uint8", (len(data),), PACKED_TYPE, data)})


def from_packed(content: RecordDict, layout: Layout, record: str = ARRAYS) -> State:
    """Reads packed tensors from a message, or from a client's context.

    Args:
        content: The records of the message or of the context.
        layout: The names and shapes of the tensors that are expected.
        record: The name of the record that holds the tensors.

    Raises:
        ValueError: If the record has no packed tensors, or tensors that were not expected.
    """
    arrays = content.array_records.get(record)
    array = None if arrays is None else arrays.get(PACKED)
    if array is None or array.stype != PACKED_TYPE:
        raise ValueError("message refused: it contains no packed tensors")
    return unpack(array.data, layout)


def to_arrays(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Returns tensors as the record that Flower's strategies use: one array for each tensor."""
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in state.items()})


def from_arrays(arrays: ArrayRecord, layout: Layout) -> State:
    """Returns the tensors in a Flower strategy's result, as float32, in the order of the layout.

    Raises:
        UserError: If the strategy left out a tensor or changed a shape.
    """
    import torch

    given = arrays.to_torch_state_dict()
    for name, shape in layout.shapes:
        if name not in given or tuple(given[name].shape) != shape:
            raise UserError(
                f"the strategy must return a tensor {name!r} of shape {shape}, but returned none"
            )
    return {name: given[name].to(torch.float32) for name, _ in layout.shapes}


def metrics_of(content: RecordDict) -> MetricRecord:
    """Returns the metrics of a reply.

    Raises:
        ValueError: If the reply has no metrics.
    """
    if METRICS not in content.metric_records:
        raise ValueError("message refused: it contains no metrics")
    return content.metric_records[METRICS]


def class_names_of(content: RecordDict) -> tuple[str, ...]:
    """Returns the names of the classes in a greeting, the first message of a client.

    Raises:
        ValueError: If the greeting has no names of classes.
    """
    record = content.config_records.get(CONFIG)
    names = None if record is None else record.get(CLASSES)
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(str(name) for name in names)
    raise ValueError("message refused: it does not list the names of the sender's classes")


def scalar(metrics: MetricRecord, name: str) -> float:
    """Returns one number of a metric record.

    Raises:
        ValueError: If the number is missing or infinite, or is a list.
    """
    value = metrics.get(name)
    if isinstance(value, int | float) and not math.isinf(value):
        return value
    raise ValueError(f"message refused: metric {name!r} is {value!r}, not a number")


def whole(metrics: MetricRecord, name: str) -> int:
    """Returns one whole number of a metric record, exactly.

    Raises:
        ValueError: If the number is missing, or is not whole.
    """
    value = scalar(metrics, name)
    if isinstance(value, int) or (abs(value) < LARGEST_EXACT and value.is_integer()):
        return int(value)
    raise ValueError(f"message refused: metric {name!r} is {value!r}, not a whole number")
