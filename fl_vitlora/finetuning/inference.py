"""Faster layers of a model for inference, without training.

An adapted layer becomes one product with W + s·B·A instead of three products and a join of slices.
The sum is formed once for all batches. The fastest library computes the product
(`finetuning.products`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from fl_vitlora.finetuning.lora import LoRALinear
from fl_vitlora.finetuning.products import Product, product_for


@contextmanager
def quick_layers(model: nn.Module) -> Iterator[None]:
    """Makes a model compute faster inside a `with` block, the same up to rounding.

    The block must not need gradients. The tensors of the model do not change: its layers get
    another `forward` and lose it at the end. Code that reads a layer's weight finds the same one.

    Args:
        model: A model in float32, with or without adapters. Its trained tensors must not change
            inside the block.
    """
    before: list[tuple[nn.Module, Callable[[Tensor], Tensor] | None]] = []
    try:
        for layer in model.modules():
            forward = _quick(layer)
            if forward is not None:
                before.append((layer, vars(layer).get("forward")))
                vars(layer)["forward"] = forward  # Python finds it before the method of the class
        yield
    finally:
        for layer, own in before:
            if own is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = own


def _quick(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Returns the faster function of a layer; None for a layer of another kind."""
    if isinstance(layer, LoRALinear):
        weight, bias = layer.merged_weight(), layer.base.bias
    elif type(layer) is nn.Linear:
        weight, bias = layer.weight.detach(), layer.bias
    else:
        return None
    return partial(_computed, product_for(weight), weight, bias)


def _computed(product: Product, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return product(x, weight, bias)
