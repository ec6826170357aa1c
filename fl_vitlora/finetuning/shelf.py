"""Makes the fine-tuning method that a configuration names.

The module `config.method_names` has the table of this project's parts. A part of another package
has a name of the form ``package.module:Class``. A tuner of the package peft has a name of the form
``peft:NAME``; the module `peft_part` makes the Python class of the tuner's part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import PARTS, is_peft, parts_of
from fl_vitlora.config.named_code import check_whole, code_named, is_class, subclass_of
from fl_vitlora.config.settings import from_mapping
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.finetuning.features import check_features
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part

ADAPTERS = ("lora", "sandwich", "lora_xs")  # for `Strategy.adapter`; the last two name one adapter


def method_of(config: FineTuningConfig, adapter: str = "lora") -> Method:
    """Returns the fine-tuning method that the settings describe.

    Args:
        config: The name of the method and its hyper-parameters.
        adapter: The adapter that the strategy needs, one of `ADAPTERS`.

    Raises:
        UserError: If a part cannot be imported, if the settings contain a hyper-parameter that no
            part has, if the parts cannot be combined, or if the strategy needs matrices R that a
            part does not have.

    Example:
        >>> [part for _, part in method_of(FineTuningConfig(method="lora+bias", rank=2)).parts]
        [LoRA(rank=2, alpha=8.0, targets=('q', 'v')), Bias(layers=())]
    """
    names = parts_of(config.method)
    kinds = {name: part_class(name) for name in names}
    if adapter in ("sandwich", "lora_xs"):
        planned = part_class("fl_vitlora.finetuning.lora_xs:PlannedLoRAXS")
        kinds = {n: planned if n in ("lora", "lora_xs") else kind for n, kind in kinds.items()}
        _check_middle(kinds, planned)
    fields = {f.name for kind in kinds.values() for f in dataclasses.fields(kind)}
    for strange in config.parameters.keys() - fields:
        raise unknown(f"parameter of method {config.method}", strange, fields)
    parts = tuple((name, _made(kind, config)) for name, kind in kinds.items())
    method = Method(name=config.method, parts=parts)
    check_features(method)
    return method


def _check_middle(kinds: Mapping[str, type[Part]], planned: type[Part]) -> None:
    """Checks that all low-rank pairs have the matrix R that a strategy needs.

    Raises:
        UserError: If a part adds pairs without R.
    """
    for name, kind in kinds.items():
        if kind.low_rank and not issubclass(kind, planned):
            raise UserError(
                f"method {name}: the strategy needs a matrix R between B and A, but {name} has "
                "no such matrix; choose --method lora or lora_xs"
            )


def part_class(name: str) -> type[Part]:
    """Imports the module of a part and returns the Python class of the part.

    Args:
        name: A name in the table `PARTS`, ``peft:NAME``, or ``package.module:Class``.

    Raises:
        UserError: If the part does not exist, if its module cannot be imported, or if its class
            lacks a method or is not a dataclass.
    """
    if is_peft(name):
        from fl_vitlora.finetuning import peft_part

        return peft_part.part_class(name)
    if name not in PARTS and not is_class(name):
        raise unknown("method", name, PARTS)
    kind: type[Part] = code_named(PARTS.get(name, name), "method", subclass_of(Part))
    check_whole(kind, f"method {name}")
    if "__dataclass_params__" not in vars(kind):
        raise UserError(
            f"method {name}: class {kind.__name__} is not a dataclass; write "
            "@dataclass(frozen=True, kw_only=True) above it"
        )
    return kind


def _made(kind: type[Part], config: FineTuningConfig) -> Part:
    """Returns a part of the given class with the hyper-parameters of the settings."""
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    own = {f.name for f in dataclasses.fields(kind)}
    given = {name: value for name, value in {**shared, **config.parameters}.items() if name in own}
    return from_mapping(kind, given, "finetuning.parameters")
