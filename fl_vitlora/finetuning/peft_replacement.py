"""Replaces layers of a model by layers of a tuner of peft, and restores merged plain layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.peft_layers import NORMS

ADAPTER = "default"  # peft's usual name for the only adapter of a model
# These tuners change the outputs of the frozen layer in place. The products of training
# (`products`) do not allow this, so the tuners get a copy of the outputs.
IN_PLACE = ("C3A", "GRALORA", "TINYLORA")


def replace(
    model: nn.Module, tuner: str, layers: Mapping[str, nn.Module], options: Mapping[str, Any]
) -> None:
    """Lets a tuner replace layers of a model, in place.

    Args:
        model: A timm ViT.
        tuner: The name of the tuner in peft.
        layers: A mapping from paths in the model to the layers that are replaced.
        options: A mapping from fields of the tuner's configuration to their values.

    Raises:
        UserError: If peft refuses the layers or the hyper-parameters.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS

    try:
        config = CONFIGS[tuner](**options, **_targets(tuner, list(layers)))
        TUNERS[tuner](model, config, ADAPTER)
    except Exception as error:  # the code of peft may raise any error
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"method peft:{tuner}: peft refuses: {cause}") from error
    del model.peft_config
    if tuner in IN_PLACE:
        for layer in layers.values():
            layer.register_forward_hook(_copied)


def _targets(tuner: str, paths: list[str]) -> dict[str, Any]:
    """Returns the fields of a tuner's configuration that name the layers to replace."""
    if tuner == NORMS:  # peft compares only endings of names: `norm` would also mean `attn.norm`
        return {"target_modules": "|".join(map(re.escape, paths))}
    if tuner == "IA3":
        narrowing = [path for path in paths if path.endswith("fc2")]
        return {"target_modules": paths, "feedforward_modules": narrowing}
    return {"target_modules": paths}


def put_back(model: nn.Module) -> None:
    """Lets peft add the trained tensors to the weights, and restores the plain layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            plain = module.get_base_layer()
            for key, hook in list(plain._forward_hooks.items()):
                if hook is _copied:
                    del plain._forward_hooks[key]
            targets.put_module(model, path, plain)


def _copied(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
    """Returns a copy of a layer's outputs; this function is a forward hook of PyTorch."""
    del layer, inputs
    return outputs.clone()
