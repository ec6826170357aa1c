"""Turns the fields of a tuner's configuration in peft into settings, the hyper-parameters.

A field becomes a setting if a user can write its value as a number, as a text, or as true or false.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from typing import Any, Literal

from fl_vitlora.config.settings import SettingParser, convert, setting
from fl_vitlora.errors import UserError, shown

# Fields of peft's configurations whose values this project sets, or that would have no effect.
HIDDEN = frozenset(
    {"bias", "fan_in_fan_out", "megatron_core", "progressbar", "use_asa"}
    | {"target_modules", "feedforward_modules", "exclude_modules", "modules_to_save"}
    | {"layers_to_transform", "layers_pattern", "target_parameters", "ensure_weight_tying"}
    | {"save_indices", "save_only_topk_weights", "save_precomputed_indices", "save_projection"}
    | {"peft_type", "task_type", "inference_mode", "revision", "base_model_name_or_path"}
    | {"peft_version"}
)
PLAIN = (bool, int, float, str)


def fields_of(config: type[Any]) -> Iterable[tuple[str, Any, Any]]:
    """Yields the name, the type and the dataclass field of each hyper-parameter."""
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        kinds = _alternatives(hints[item.name])
        usable = all(kind in PLAIN or typing.get_origin(kind) is Literal for kind in kinds)
        if item.name in HIDDEN or not usable or item.default is dataclasses.MISSING:
            continue
        told = str(item.metadata.get("help", ""))
        yield item.name, Any, setting(item.default, told, read=_reader(kinds))


def _alternatives(hint: Any) -> list[Any]:
    """Returns the types of a union except None, or the type itself."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is not Literal else ()
    return [kind for kind in kinds or (hint,) if kind is not type(None)]


def _reader(kinds: list[Any]) -> SettingParser:
    """Returns a function that converts a value to the first of several types that fits."""

    def read(value: Any, path: str) -> Any:
        if isinstance(value, float) and value.is_integer() and float not in kinds:
            value = int(value)  # `finetuning.alpha` is a float, and peft's `alpha` is an int
        problems = []
        for kind in kinds:
            try:
                return convert(kind, value, path)
            except UserError as error:
                problems.append(error)
        raise problems[0] if len(kinds) == 1 else UserError(f"{path}: {shown(value)} does not fit")

    return read
