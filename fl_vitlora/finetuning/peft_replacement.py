"""Replaces layers of a model by those of a tuner of peft, and puts merged plain layers back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.peft_layers import NORMS

ADAPTER = "default"  # peft's usual name for the only adapter of a model
# These tuners add in place to the outputs of the frozen layer, which the products of training
# (`products`) do not allow. So they get a copy of the outputs.
IN_PLACE = ("C3A", "GRALORA", "TINYLORA")


def replace(
    model: nn.Module, tuner: str, layers: Mapping[str, nn.Module], options: Mapping[str, Any]
) -> None:
    """Lets a tuner replace layers of a model, in place.

    Args:
        model: A timm ViT.
        tuner: The name of the tuner in peft.
        layers: The layers by their paths in the model.
        options: The hyper-parameters, by the names of the fields of the tuner's configuration.

    Raises:
        UserError: If peft refuses the layers or the hyper-parameters.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS

    try:
        config = CONFIGS[tuner](**options, **_targets(tuner, list(layers)))
        TUNERS[tuner](model, config, ADAPTER)
    except Exception as error:  # raised by code of peft
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"method peft:{tuner}: peft refuses: {cause}") from error
    del model.peft_config
    if tuner in IN_PLACE:
        for layer in layers.values():
            layer.register_forward_hook(_copied)


def _targets(tuner: str, paths: list[str]) -> dict[str, Any]:
    """Returns the fields of a configuration that name the layers."""
    if tuner == NORMS:  # peft compares endings of names: `norm` would be `attn.norm` as well
        return {"target_modules": "|".join(map(re.escape, paths))}
    if tuner == "IA3":
        narrowing = [path for path in paths if path.endswith("fc2")]
        return {"target_modules": paths, "feedforward_modules": narrowing}
    return {"target_modules": paths}


def put_back(model: nn.Module) -> None:
    """Lets peft add the trained tensors to the weights, and puts the plain layers back."""
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
    """Returns a copy of the outputs of a layer, as a forward hook."""
    del layer, inputs
    return outputs.clone()
