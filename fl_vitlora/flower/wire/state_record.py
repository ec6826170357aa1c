"""A record of tensors that is packed only if somebody looks into it.

The two ends of the wire hand tensors to the app, and take them from it, in records of Flower, so
that other mods can stand between. Usually nobody reads these records, and then nothing is packed.
Whoever reads or changes such a record finds an ordinary `ArrayRecord` with one packed array
(`communication.packing`), and the app then reads that array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord

from fl_vitlora.communication.packing import Layout, unpack
from fl_vitlora.flower.wire import messages
from fl_vitlora.state import State

OPENING = (  # the methods of a mapping, which all others call
    "__contains__",
    "__delitem__",
    "__eq__",
    "__getitem__",
    "__iter__",
    "__len__",
    "__reduce_ex__",  # for copies and for pickles
    "__repr__",
    "__setitem__",
    "copy",
    "items",
    "keys",
    "values",
)


class StateRecord(ArrayRecord):
    """An array record that holds tensors as they are, until it is opened.

    Args:
        state: The tensors by name, float32. Nobody may change them afterwards.

    Attributes:
        state: The tensors.

    Example:
        >>> import torch
        >>> record = StateRecord({"w": torch.zeros(3, 2)})
        >>> type(record).__name__, list(record), type(record).__name__
        ('StateRecord', ['packed'], 'ArrayRecord')
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def open(self) -> None:
        """Packs the tensors, and makes this record an ordinary one."""
        packed = messages.to_packed(self.__dict__.pop("state"))
        self.__class__ = ArrayRecord  # type: ignore[assignment]
        self.update(packed)


def _opening(name: str) -> Callable[..., Any]:
    """Returns the method of an ordinary record that opens a `StateRecord` before."""

    def method(self: StateRecord, *arguments: Any) -> Any:
        self.open()
        return getattr(self, name)(*arguments)

    return method


for _name in OPENING:
    setattr(StateRecord, _name, _opening(_name))


def holds_state(arrays: ArrayRecord) -> bool:
    """Returns True if a record holds tensors of ours, packed or not."""
    if isinstance(arrays, StateRecord):
        return True
    packed = arrays.get(messages.PACKED)
    return packed is not None and packed.stype == messages.PACKED_TYPE


def state_in(arrays: ArrayRecord | None, layout: Callable[[], Layout]) -> State:
    """Returns the tensors of a record.

    Args:
        arrays: The record; None if the message has no such record.
        layout: A function that derives the layout of the tensors. It is called only if the record
            is packed.

    Raises:
        ValueError: If the record holds no packed tensors, or tensors of another layout.
    """
    if isinstance(arrays, StateRecord):
        return arrays.state
    if arrays is None or not holds_state(arrays):
        raise ValueError("message refused: it carries no packed state")
    return unpack(arrays[messages.PACKED].data, layout())
