"""Converts nested values (trees) with tensors and bytes into named tensors and JSON.

JSON has no tensors, no bytes and no mappings with keys that are numbers. A value of one of these
kinds is stored as a JSON object with one key: ``{"tensor": "3"}`` means the tensor named 3,
``{"bytes": "4"}`` means the bytes in the tensor named 4, and ``{"map": [[key, value], …]}`` means a
mapping. If a tensor occurs several times in the tree, it is stored once. A tuple is read back as a
list.
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
    """Separates a tree into its tensors and a value that JSON can store.

    Args:
        tree: A nested value of the types that the comment on `Tree` lists.

    Returns:
        A pair: copies of the tensors by name, on the CPU, and the tree as a value for JSON.

    Raises:
        TypeError: If the tree contains a value of any other type.

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
        raise TypeError(
            f"cannot store a value of the type {type(value).__name__}; expected None, truth "
            "values, numbers, texts, bytes, tensors, lists or mappings"
        )

    return tensors, plain(tree)


def build(tensors: Mapping[str, Tensor], plain: Any) -> Tree:
    """Builds a tree from the two results of `flatten`.

    Args:
        tensors: The tensors by name, as `flatten` returned them.
        plain: The tree as a value for JSON, as `flatten` returned it.

    Returns:
        A tree that equals the original, except that tuples have become lists.

    Raises:
        KeyError: If a tensor is missing.
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
