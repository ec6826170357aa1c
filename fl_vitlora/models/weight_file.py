"""Reads a weight file of safetensors or torch, and never runs code that the file contains.

The result is a mapping of dotted names to tensors: `{"model": {"cls_token": t}}` becomes
`{"model.cls_token": t}`. Entries that are not tensors (epochs, options, optimiser steps) are
ignored.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fl_vitlora.errors import UserError, shown

HEADER_LENGTH = 8  # bytes before the JSON header of a safetensors file
DEEPEST = 8  # levels of nested mappings that are searched for tensors
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    UnpicklingError,
    ValueError,
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a file, on the CPU.

    Args:
        path: The path of a file that safetensors or `torch.save` has written. The function
            recognises the format by the content, not by the name.

    Returns:
        The tensors by their dotted names.

    Raises:
        UserError: When the file cannot be read or contains no tensor, or when reading it would run
            code.
    """
    try:
        content = load_file(path) if _is_safetensors(path) else _load_torch(path)
    except UnpicklingError:
        raise UserError(
            f"weights {path} cannot be read: the file is damaged, or reading it would run code"
            f"{_unsafe(path)}, which this program never does; save the weights again with "
            "safetensors.torch.save_file or torch.save(model.state_dict(), FILE)"
        ) from None
    except UNREADABLE as error:
        raise UserError(
            f"weights {path} cannot be read: expected a file of safetensors or of torch.save "
            f"({one_line(error)})"
        ) from None
    return tensors_of(content, str(path))


def tensors_of(content: Any, where: str) -> dict[str, Tensor]:
    """Collects all tensors in the content of a weight file, by their dotted names.

    Args:
        content: A mapping from names to tensors, or to further mappings of this kind.
        where: The path or origin of the file, for error messages.

    Raises:
        UserError: When the content has no tensor, two tensors of the same name, or a sparse or
            quantised tensor.

    Example:
        >>> list(tensors_of({"model": {"a": torch.zeros(1)}, "epoch": 3}, "FILE"))
        ['model.a']
    """
    if not isinstance(content, Mapping):
        raise UserError(f"weights {where}: expected tensors by name, got {shown(content)}")
    found: dict[str, Tensor] = {}
    for name, tensor in _walk(content):
        if name in found:
            raise UserError(f"weights {where}: two tensors have the same name {name}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(
                f"weights {where}: expected dense tensors of numbers, but {name} is sparse, "
                "quantised or without numbers"
            )
        found[name] = tensor
    if not found:
        raise UserError(
            f"weights {where}: expected tensors, found only the entries {shown(list(content))}"
        )
    return found


def weights_in_folder(folder: Path) -> Path:
    """Finds the weight file in a folder with the files of a repository of the hub.

    Raises:
        UserError: When there is no weight file, or when there are several weight files and no file
            has a usual name.
    """
    known = [folder / name for name in FOLDER_FILES if (folder / name).is_file()]
    endings = ("*.safetensors", "*.bin", "*.pth", "*.pt")
    others = sorted(path for ending in endings for path in folder.glob(ending))
    if known:
        return known[0]
    if len(others) == 1:
        return others[0]
    names = ", ".join(path.name for path in others) or "none"
    raise UserError(
        f"{folder}: expected one file of weights, such as model.safetensors, found {names}"
    )


def one_line(error: Exception) -> str:
    """Returns an error's type and the beginning of its message, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _walk(
    content: Mapping[Any, Any], path: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{path}{key}", value.detach()
        elif isinstance(value, Mapping) and depth < DEEPEST:
            yield from _walk(value, f"{path}{key}.", depth + 1)


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(HEADER_LENGTH + 1)
    return start[HEADER_LENGTH:] == b"{" and not start.startswith(b"PK")


def _load_torch(path: Path) -> Any:
    """Loads a file of torch, which may contain only plain values, tensors and argparse options."""
    with (
        path.open("rb") as file,  # with a path, torch would decide by the suffix
        torch.serialization.safe_globals([argparse.Namespace]),
        warnings.catch_warnings(action="ignore"),
    ):
        return torch.load(file, map_location="cpu", weights_only=True)


def _unsafe(path: Path) -> str:
    """Returns a text: the names of functions or classes that a file would call, in brackets."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except UNREADABLE:
        return ""
    return f" ({', '.join(map(str, names[:3]))})" if names else ""
