"""The names of fine-tuning methods.

A method consists of parts, each of which trains some tensors of the model. The name of a method
joins the names of its parts by +, for example ``lora+patch_embed``. This module has only a table of
these names, so that a configuration can be read without importing PyTorch. The module
`fl_vitlora.finetuning.methods` imports the classes of the parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fl_vitlora.config.named_code import is_class
from fl_vitlora.errors import UserError, shown, unknown

# One line for each part that ships with the project: its name, and the place of its class.
PARTS: Mapping[str, str] = {
    "adaptformer": "fl_vitlora.finetuning.adaptformer:AdaptFormer",
    "adarankgrad": "fl_vitlora.finetuning.adarankgrad:AdaRankGrad",
    "aflora": "fl_vitlora.finetuning.aflora:AFLoRA",
    "bias": "fl_vitlora.finetuning.bias:Bias",
    "descent": "fl_vitlora.finetuning.layerwise_descent:LayerwiseDescent",
    "dora": "fl_vitlora.finetuning.dora:DoRA",
    "fact": "fl_vitlora.finetuning.fact:FacT",
    "feature_statistics": "fl_vitlora.finetuning.feature_statistics:FeatureStatistics",
    "full": "fl_vitlora.finetuning.full:Full",
    "head": "fl_vitlora.finetuning.head:Head",
    "houlsby": "fl_vitlora.finetuning.houlsby:Houlsby",
    "hta": "fl_vitlora.finetuning.hta:HTA",
    "lda": "fl_vitlora.finetuning.lda:LDA",
    "lora": "fl_vitlora.finetuning.lora_part:LoRA",
    "lora_plus": "fl_vitlora.finetuning.lora_plus:LoRAPlus",
    "lora_xs": "fl_vitlora.finetuning.lora_xs:LoRAXS",
    "losa": "fl_vitlora.finetuning.losa:LoSA",
    "norm": "fl_vitlora.finetuning.norm:Norm",
    "patch_embed": "fl_vitlora.finetuning.patch_embed:PatchEmbedding",
    "repadapter": "fl_vitlora.finetuning.repadapter:RepAdapter",
    "rslora": "fl_vitlora.finetuning.rslora:RankStabilisedLoRA",
    "sara": "fl_vitlora.finetuning.sara:SaRA",
    "sift": "fl_vitlora.finetuning.sift:SIFT",
    "soda": "fl_vitlora.finetuning.soda:SODA",
    "ssf": "fl_vitlora.finetuning.ssf:SSF",
    "tied_lora": "fl_vitlora.finetuning.tied_lora:TiedLoRA",
    "tlora": "fl_vitlora.finetuning.tlora:TLoRA",
    "vera": "fl_vitlora.finetuning.vera:VeRA",
    "vpt": "fl_vitlora.finetuning.vpt:ShallowPrompts",
    "vpt_deep": "fl_vitlora.finetuning.vpt:DeepPrompts",
}
PEFT = "peft:"  # the beginning of the name of a tuner of the package peft, such as peft:HRA
USUAL = ("lora+patch_embed", "lora", "head", "full")  # the methods that messages suggest


def parts_of(method: str) -> tuple[str, ...]:
    """Splits the name of a fine-tuning method into the names of its parts.

    Example:
        >>> parts_of("lora+patch_embed")
        ('lora', 'patch_embed')
    """
    return tuple(part.strip() for part in method.split("+"))


def is_peft(part: str) -> bool:
    """Returns True if the name of a part is ``peft:`` and a word, which names a tuner of peft.

    Example:
        >>> is_peft("peft:HRA"), is_peft("peft.tuners:HRA")
        (True, False)
    """
    return part.lower().startswith(PEFT) and part[len(PEFT) :].isidentifier()


def _spelt(part: str) -> str:
    """Returns the name of a part; tuners of peft are written in capitals, as peft writes them.

    Example:
        >>> _spelt("peft:LoHa"), _spelt("lora")
        ('peft:LOHA', 'lora')
    """
    return f"{PEFT}{part[len(PEFT) :].upper()}" if is_peft(part) else part


def is_sum(word: str) -> bool:
    """Returns True if a word is the name of a method that consists of several known parts.

    Example:
        >>> is_sum("bias+norm"), is_sum("lora"), is_sum("bias+fedavg")
        (True, False, False)
    """
    parts = parts_of(word)
    return len(parts) > 1 and all(part in PARTS or is_class(part) for part in parts)


def foreign_parts(method: str) -> tuple[str, ...]:
    """Returns the parts of a method whose code does not belong to this project.

    Example:
        >>> foreign_parts("lora+mine:Mine"), foreign_parts("fl_vitlora.finetuning.bias:Bias")
        (('mine:Mine',), ())
        >>> foreign_parts("peft:HRA")
        ()
    """
    own = tuple(part for part in parts_of(method) if part not in PARTS and not is_peft(part))
    return tuple(part for part in own if part.split(":")[0].split(".")[0] != "fl_vitlora")


def read_parameters(value: Any, path: str) -> Mapping[str, Any]:
    """Reads the setting with the parameters of a method's parts.

    Raises:
        UserError: When the value is not a mapping of names to values.

    Example:
        >>> read_parameters({"gain": 2}, "finetuning.parameters")
        {'gain': 2}
    """
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise UserError(
            f"{path}: expected a mapping of names to values, for example --set {path}.gain=2, got "
            f"{shown(value)}"
        )
    return dict(value)


def read_method(value: Any, path: str) -> str:
    """Reads the name of a method, and checks the names of its parts.

    Args:
        value: The name of the method as the user wrote it.
        path: The dotted path of the setting, for error messages.

    Returns:
        The name of the method without spaces.

    Raises:
        UserError: When a part is unknown, or occurs twice.

    Example:
        >>> read_method("bias + norm", "finetuning.method")
        'bias+norm'
        >>> read_method("peft:hra+patch_embed", "finetuning.method")
        'peft:HRA+patch_embed'
    """
    if not isinstance(value, str):
        raise UserError(
            f"{path}: expected the name of a method such as lora+patch_embed, got {shown(value)}"
        )
    parts = tuple(_spelt(part) for part in parts_of(value))
    for part in parts:
        if part not in PARTS and not is_class(part):
            choices = [*PARTS, *(() if len(parts) > 1 and all(parts) else USUAL)]
            raise unknown(path, value if len(parts) == 1 or not part else part, choices)
        if parts.count(part) > 1:
            raise UserError(
                f"{path}: expected each part once, but {part} occurs twice in {shown(value)}"
            )
    if "full" in parts and len(parts) > 1:
        raise UserError(
            f"{path}: full trains every tensor and cannot be joined with other parts; write "
            "--method full"
        )
    return "+".join(parts)
