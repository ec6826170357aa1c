"""A model's layers as they are computed fastest where nothing is trained.

An adapted layer is one product with W + s·B·A, which is formed once for all batches, instead of
three and the joining of slices; and the product is left to the fastest library
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
    """Lets a model compute the same in less time, to rounding, for a while and without gradients.

    Its tensors are neither changed nor exchanged: layers are told to compute otherwise, and then no
    longer. What reads the weight of a layer itself finds what it always does.

    Args:
        model: In float32, with or without adapters; its trained tensors must stay as they are for
            that while.
    """
    before: list[tuple[nn.Module, Callable[[Tensor], Tensor] | None]] = []
    try:
        for layer in model.modules():
            forward = _quick(layer)
            if forward is not None:
                before.append((layer, vars(layer).get("forward")))
                vars(layer)["forward"] = forward  # found before that of the class
        yield
    finally:
        for layer, own in before:
            if own is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = own


def _quick(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Makes what a layer is to compute instead; none for a layer of another kind."""
    if isinstance(layer, LoRALinear):
        weight, bias = layer.merged_weight(), layer.base.bias
    elif type(layer) is nn.Linear:
        weight, bias = layer.weight.detach(), layer.bias
    else:
        return None
    return partial(_computed, product_for(weight), weight, bias)


def _computed(product: Product, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return product(x, weight, bias)
