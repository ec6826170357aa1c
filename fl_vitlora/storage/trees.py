"""Nested plain values with tensors and bytes in them, as tensors by name and JSON.

A JSON object of one entry stands for what JSON does not know: ``{"tensor": "3"}`` for the tensor
of that name, ``{"bytes": "4"}`` for bytes, ``{"map": [[key, value], …]}`` for a mapping, whose keys
may be numbers. A tensor that occurs several times is stored once. Tuples come back as lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.state import State

Tree = Any  # None, truth values, numbers, texts, bytes, tensors; lists and mappings of trees
TENSOR, BYTES, MAP = "tensor", "bytes", "map"


def flatten(tree: Tree) -> tuple[State, Any]:
    """Takes the tensors and bytes out of a tree.

    Args:
        tree: A tree with values of the kinds above and no others.

    Returns:
        Tensors on the CPU with memory of their own, and what JSON can hold.

    Raises:
        TypeError: When there is something else in it.

    Example:
        >>> flatten({3: [1, "a", None]})
        ({}, {'map': [[3, [1, 'a', None]]]})
    """
    tensors: State = {}
    names: dict[int, str] = {}

    def store(value: Tensor) -> str:
        if id(value) not in names:
            names[id(value)] = str(len(tensors))
            tensors[names[id(value)]] = value.detach().cpu().clone().contiguous()
        return names[id(value)]

    def plain(value: Tree) -> Any:
        match value:
            case None | bool() | int() | float() | str():
                return value
            case Tensor():
                return {TENSOR: store(value)}
            case bytes():
                name = str(len(tensors))
                tensors[name] = torch.from_numpy(np.frombuffer(value, np.uint8).copy())
                return {BYTES: name}
            case list() | tuple():
                return [plain(item) for item in value]
            case Mapping():
                return {MAP: [[plain(key), plain(item)] for key, item in value.items()]}
        raise TypeError(f"a {type(value).__name__} cannot be stored")

    return tensors, plain(tree)


def build(tensors: Mapping[str, Tensor], plain: Any) -> Tree:
    """Puts a tree together again that `flatten` took apart.

    Raises:
        KeyError: When a tensor is missing.
    """
    match plain:
        case {"tensor": name}:
            return tensors[name]
        case {"bytes": name}:
            return tensors[name].numpy().tobytes()
        case {"map": pairs}:
            return {build(tensors, key): build(tensors, item) for key, item in pairs}
        case list():
            return [build(tensors, item) for item in plain]
        case _:
            return plain
