"""Makes the layers of a model compute faster for inference, when nothing is trained.

A LoRA layer normally multiplies its input with three matrices: W, A and B. Inside `quick_layers` a
LoRA layer multiplies its input with one matrix, the merged weight W + s·B·A, which is computed once
for all batches. The module `finetuning.products` chooses the fastest library for the product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from fl_vitlora.finetuning.lora import LoRALinear
from fl_vitlora.finetuning.products import Product, product_for
from fl_vitlora.finetuning.slices import AdaptedLinear


@contextmanager
def quick_layers(model: nn.Module) -> Iterator[None]:
    """Makes a model compute faster inside a `with` block; its outputs change only by rounding.

    The code in the block must not need gradients. Inside the block, the layers have another method
    `forward`. The tensors of the model do not change. Therefore code in the block that reads the
    weight of a layer gets the same weight as code outside the block.

    Args:
        model: A model in float32, with or without adapters. The trained tensors of this model must
            not change inside the block.
    """
    before: list[tuple[nn.Module, Callable[[Tensor], Tensor] | None]] = []
    try:
        for layer in model.modules():
            forward = _quick(layer)
            if forward is not None:
                before.append((layer, vars(layer).get("forward")))
                vars(layer)["forward"] = forward  # hides the class's own `forward`
        yield
    finally:
        for layer, own in before:
            if own is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = own


def _quick(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Returns a faster function for the outputs of a linear layer; None for any other layer."""
    if isinstance(layer, LoRALinear | AdaptedLinear):
        weight, bias = layer.merged_weight(), layer.base.bias
    elif type(layer) is nn.Linear:
        weight, bias = layer.weight.detach(), layer.bias
    else:
        return None
    return partial(_computed, product_for(weight), weight, bias)


def _computed(product: Product, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return product(x, weight, bias)
