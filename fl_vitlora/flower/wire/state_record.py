"""A record of tensors that packs the tensors only if some code looks into the record.

Inside a client or a server, tensors are passed between the codecs and the app in records of Flower,
so that other Flower mods can see the tensors. Usually no mod reads the records of tensors, and
nothing is packed. If a mod reads or changes a record of this class, the record becomes an ordinary
`ArrayRecord` with one packed array (`communication.packing`), and the app then reads that array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord

from fl_vitlora.communication.packing import Layout, unpack
from fl_vitlora.flower.wire import messages
from fl_vitlora.state import State

OPENING = (  # the basic methods of a mapping, on which all its other methods rely
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
    """An array record that holds tensors without packing them, until its content is read.

    Args:
        state: The tensors by name, float32. The tensors of `state` must not change after this call.

    Attributes:
        state: The tensors by name, until the content is read.

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
        """Packs the tensors, and turns this record into an ordinary `ArrayRecord`."""
        packed = messages.to_packed(self.__dict__.pop("state"))
        self.__class__ = ArrayRecord  # type: ignore[assignment]
        self.update(packed)


def _opening(name: str) -> Callable[..., Any]:
    """Returns a method that first opens a `StateRecord` and then calls the ordinary method."""

    def method(self: StateRecord, *arguments: Any) -> Any:
        self.open()
        return getattr(self, name)(*arguments)

    return method


for _name in OPENING:
    setattr(StateRecord, _name, _opening(_name))


def holds_state(arrays: ArrayRecord) -> bool:
    """Returns True if a record holds tensors of this project, packed or not packed."""
    if isinstance(arrays, StateRecord):
        return True
    packed = arrays.get(messages.PACKED)
    return packed is not None and packed.stype == messages.PACKED_TYPE


def state_in(arrays: ArrayRecord | None, layout: Callable[[], Layout]) -> State:
    """Returns the tensors of a record.

    Args:
        arrays: The record; None if the message has no such record.
        layout: A function that returns the names and shapes of the tensors. The function `layout`
            is called only if the record is packed.

    Raises:
        ValueError: If the record holds no tensors, or tensors with other names or shapes.
    """
    if isinstance(arrays, StateRecord):
        return arrays.state
    if arrays is None or not holds_state(arrays):
        raise ValueError("message refused: it contains no packed tensors")
    return unpack(arrays[messages.PACKED].data, layout())
