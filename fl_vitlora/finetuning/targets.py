"""Adds adapters (low-rank matrices) to the layers q, k, v, proj, fc1 and fc2 of a timm ViT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.lora import LoRALinear

MakeLayer = Callable[[nn.Linear, Mapping[str, tuple[int, int]]], nn.Module]

FUSED = ("q", "k", "v")  # the three parts of the outputs of the layer `qkv`, in timm's order
LAYERS: Mapping[str, str] = {
    **dict.fromkeys(FUSED, "attn.qkv"),
    "proj": "attn.proj",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}


def attach(model: nn.Module, targets: Sequence[str], make: MakeLayer) -> None:
    """Adds adapters to the target layers of every block, in place.

    Args:
        model: A timm ViT.
        targets: The names of the target layers, from `LAYERS`.
        make: A function that makes the layer with adapters. The arguments of `make` are the plain
            layer, and a mapping from each target to the range of outputs that is adapted.

    Raises:
        UserError: If the model has no blocks, if a block does not have a target layer, or if `make`
            raises this error.
    """
    for block in blocks_of(model):
        for path in dict.fromkeys(LAYERS[target] for target in targets):
            plain = _find(block, path)
            chosen = [target for target in targets if LAYERS[target] == path]
            try:
                made = make(plain, _slices(plain, chosen))
            except UserError as error:
                raise UserError(f"{error} ({path} of {type(model).__name__})") from None
            put_module(block, path, made)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks of a timm ViT, in order.

    Raises:
        UserError: If the model has no blocks.
    """
    blocks = list(getattr(model, "blocks", []))
    if not blocks:
        raise UserError(
            f"the method finds no transformer blocks in {type(model).__name__}; use a plain ViT, "
            "or --method full"
        )
    return blocks


def merge(model: nn.Module) -> None:
    """Adds the products of all adapters to the weights, and removes the adapters, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            put_module(model, path, module.merged())


def put_increments(model: nn.Module, increments: Mapping[str, Tensor]) -> None:
    """Sets the frozen weights of adapted layers to the pre-trained weights plus s·increment.

    s is the scale of LoRA. The model is changed in place.

    Args:
        model: A model with adapters.
        increments: A mapping from the paths of low-rank pairs, for example
            ``blocks.0.attn.qkv.adapters.q``, to increments, (m, n) for m outputs and n inputs.
    """
    for path, module in model.named_modules():
        if isinstance(module, LoRALinear):
            own = {name: f"{path}.adapters.{name}" for name in module.slices}
            module.put_increments(
                {name: increments[place] for name, place in own.items() if place in increments}
            )


def _slices(layer: nn.Linear, targets: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Returns a mapping from each target to the start and the end of its slice of the outputs."""
    third = layer.out_features // 3
    return {
        target: (
            (FUSED.index(target) * third, (FUSED.index(target) + 1) * third)
            if target in FUSED
            else (0, layer.out_features)
        )
        for target in targets
    }


def _find(block: nn.Module, path: str) -> nn.Linear:
    """Returns the linear layer with a dotted name in a block.

    Raises:
        UserError: If there is no linear layer at this path, or if another part of the method has
            replaced the layer.
    """
    try:
        layer = block.get_submodule(path)
    except AttributeError:
        layer = None
    if hasattr(layer, "base"):
        raise UserError(
            f"two parts of the method change the layer {path!r}, but the second part needs a plain "
            "layer; give the parts different layers, or write ssf last in the sum"
        )
    if not isinstance(layer, nn.Linear):
        linear = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        there = ",".join(target for target, place in LAYERS.items() if place in linear)
        others = (
            f"choose other layers: --set 'finetuning.targets=[{there}]'"
            if there
            else "use a plain ViT"
        )
        raise UserError(
            f"the method finds no linear layer {path!r} in {type(block).__name__}, only {linear}; "
            f"{others}, or use --method full"
        )
    return layer


def put_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Replaces a module of a model by another module, in place.

    Args:
        root: The model, or a part of it.
        path: The dotted path of the module to replace.
        module: The new module.
    """
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
