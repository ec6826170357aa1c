"""The memory of a Flower strategy from round to round, as tensors and JSON.

Flower's strategies keep moments, norms and privacy accounts in their attributes, in addition to
their options. All attributes are stored, without pickle. Arrays become tensors, named by the path
of the attribute. Other values become JSON; a type that JSON lacks becomes a mapping with one key.
Functions are not stored, because a new instance has them. Values of any other type cannot be
stored: the snapshot lists them as missing, and a strategy with missing values cannot be restored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fl_vitlora.errors import UserError
from fl_vitlora.state import State


@runtime_checkable
class Restorable(Protocol):
    """An object that returns and restores its own state, as Flower's accountant does."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of this object."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        ...


def snapshot(strategy: Strategy) -> tuple[State, dict[str, Any]]:
    """Returns the memory of a strategy: its arrays as tensors, and all other values as JSON."""
    tensors: State = {}
    return tensors, _write_strategy(strategy, "", tensors)


def unstorable(strategy: Strategy) -> dict[str, str]:
    """Returns the types of the attributes that a snapshot cannot store, by attribute name."""
    plain = snapshot(strategy)[1]
    found: dict[str, str] = {}
    while plain:
        found |= plain["missing"]
        inner = (
            stored["strategy"] for stored in plain["attributes"].values() if _holds_strategy(stored)
        )
        plain = next(inner, {})
    return found


def _holds_strategy(stored: Any) -> bool:
    """Returns True if a stored attribute is a wrapped strategy."""
    return isinstance(stored, dict) and "strategy" in stored


def restore(strategy: Strategy, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Restores the memory of a strategy from a snapshot.

    Args:
        strategy: A new instance with the options of the stored strategy.
        tensors: The tensors of the snapshot.
        plain: The other values of the snapshot, in types that JSON has.

    Raises:
        UserError: If the snapshot is of another strategy, or is incomplete.
    """
    kind = type(strategy).__name__
    if plain.get("kind") != kind:
        raise UserError(
            f"the stored state belongs to strategy {plain.get('kind')}, expected {kind}"
        )
    for name, what in plain["missing"].items():
        raise UserError(
            f"strategy {kind} cannot continue from a checkpoint: its attribute {name} is a {what}, "
            "which a checkpoint cannot store"
        )
    try:
        for name, stored in plain["attributes"].items():
            _restore_attribute(vars(strategy), name, stored, tensors)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"the stored state does not fit strategy {kind}: {error!r}") from None


def _restore_attribute(
    attributes: dict[str, Any], name: str, stored: Any, tensors: Mapping[str, Tensor]
) -> None:
    """Sets one attribute to its stored value."""
    match stored:
        case {"strategy": inner}:
            restore(attributes[name], tensors, inner)
        case {"state": state}:
            attributes[name].load_state_dict(_read(state, tensors))
        case _:
            attributes[name] = _read(stored, tensors)


def _write_strategy(strategy: Strategy, path: str, tensors: State) -> dict[str, Any]:
    """Returns all attributes of a strategy as JSON, and adds its arrays to `tensors`."""
    attributes: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, value in vars(strategy).items():
        place = f"{path}{name}"
        if isinstance(value, Strategy):
            attributes[name] = {"strategy": _write_strategy(value, f"{place}/", tensors)}
        elif _is_known(value):
            attributes[name] = _write(value, place, tensors)
        elif isinstance(value, Restorable) and _is_known(state := value.state_dict()):
            attributes[name] = {"state": _write(state, place, tensors)}
        elif not inspect.isroutine(value):
            missing[name] = type(value).__name__
    return {"kind": type(strategy).__name__, "attributes": attributes, "missing": missing}


def _is_known(value: Any) -> bool:
    """Returns True if `_write` can write a value: numbers, texts, arrays, lists and mappings."""
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    if isinstance(value, list | tuple):
        return all(map(_is_known, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_known, value.values()))
    return value is None or isinstance(value, bool | int | float | str | ArrayRecord)


def _write(value: Any, path: str, tensors: State) -> Any:
    """Returns a value as JSON, and adds its arrays to `tensors`, named by the path."""
    if isinstance(value, np.ndarray | np.generic):
        tensors[path] = torch.from_numpy(np.array(value, order="C"))
        return {"array" if isinstance(value, np.ndarray) else "number": path}
    if isinstance(value, list | tuple):
        items = [_write(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict):
        return {"dict": {k: _write(item, f"{path}/{k}", tensors) for k, item in value.items()}}
    if isinstance(value, ArrayRecord):
        return {"record": _write({k: a.numpy() for k, a in value.items()}, path, tensors)}
    return value


def _read(stored: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns the value that `_write` stored."""
    match stored:
        case {"array": path} | {"number": path}:
            array = tensors[path].numpy().copy()
            return array if "array" in stored else array[()]
        case {"tuple": items}:
            return tuple(_read(items, tensors))
        case {"dict": items}:
            return {key: _read(item, tensors) for key, item in items.items()}
        case {"record": items}:
            return ArrayRecord({k: Array(array) for k, array in _read(items, tensors).items()})
        case list():
            return [_read(item, tensors) for item in stored]
        case _:
            return stored
