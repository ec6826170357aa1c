"""The layers of a timm ViT that a tuner of peft adapts.

timm computes queries, keys and values in one layer, `qkv`. A tuner of peft adapts whole layers.
Therefore a tuner adapts q, k and v together, or none of the three.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import targets

NORMS = "LN_TUNING"  # a tuner that trains all layer normalisations and no linear layer


def layers_of(model: nn.Module, tuner: str, names: Sequence[str]) -> dict[str, nn.Module]:
    """Returns a dictionary from paths in the model to the layers that a tuner replaces.

    Args:
        model: A timm ViT.
        tuner: The name of the tuner in peft.
        names: The value of the setting `finetuning.targets`.

    Raises:
        UserError: If the model lacks a layer, or if `names` is not the default of the setting and
            has only one or two of q, k and v.
    """
    chosen: list[nn.Module] = []
    if tuner == NORMS:
        chosen = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    else:
        targets.attach(model, _slices(tuner, names), lambda layer, _: _noted(chosen, layer))
    own = {id(layer) for layer in chosen}
    return {path: layer for path, layer in model.named_modules() if id(layer) in own}


def note(tuner: str, names: Sequence[str]) -> str:
    """Returns a sentence for the user if the default targets q and v mean the whole layer `qkv`.

    For other targets, and for tuners that adapt no linear layer, the result is an empty text.

    Args:
        tuner: The name of the tuner in peft.
        names: The value of the setting `finetuning.targets`.
    """
    if names != FineTuningConfig().targets or tuner == NORMS:
        return ""
    return (
        f"peft:{tuner} adapts the whole layer qkv, because peft cannot adapt q and v alone; "
        "choose other layers with, for example, --set 'finetuning.targets=[q,k,v,proj]'"
    )


def _slices(tuner: str, names: Sequence[str]) -> Sequence[str]:
    """Returns the names of the target slices, which are all of q, k and v or none of the three.

    Raises:
        UserError: If `names` is not the default of the setting and has only one or two of q, k and
            v.
    """
    if note(tuner, names):
        return targets.FUSED
    fused = set(targets.FUSED) & set(names)
    if len(fused) in (0, len(targets.FUSED)):
        return names
    others = [name for name in names if name not in targets.FUSED]
    raise UserError(
        f"method peft:{tuner}: peft cannot adapt {', '.join(sorted(fused))} alone, "
        "because timm's layer qkv is one layer; choose the whole layer: "
        f"--set 'finetuning.targets=[{','.join([*targets.FUSED, *others])}]'"
    )


def _noted(chosen: list[nn.Module], layer: nn.Module) -> nn.Module:
    """Appends a layer to a list, and returns the layer."""
    chosen.append(layer)
    return layer
