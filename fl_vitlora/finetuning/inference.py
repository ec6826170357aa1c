"""A model's linear layers as they are computed fastest where nothing is trained.

An adapted layer is one product with W + s·B·A, which is formed once for all batches, instead of
three and the joining of slices. And PyTorch leaves float32 products on x86 processors to MKL, which
does not use the widest vectors of those that are not Intel's; oneDNN, which comes with PyTorch as
well, does. It has no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.finetuning.lora import LoRALinear

ONE_DNN = "_linear_pointwise"  # its linear layer, with nothing after it
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of input, weight and bias


@contextmanager
def quick_layers(model: nn.Module) -> Iterator[None]:
    """Lets a model compute the same in less time, to rounding, for a while and without gradients.

    Its tensors are neither changed nor exchanged: layers are told to compute otherwise, and then no
    longer. What reads the weight of a layer itself finds what it always does.

    Args:
        model: In float32, with or without adapters; its trained tensors must stay as they are for
            that while.
    """
    told = []
    try:
        for layer in model.modules():
            forward = _quick(layer)
            if forward is not None:
                vars(layer)["forward"] = forward  # found before that of the class
                told.append(layer)
        yield
    finally:
        for layer in told:
            del vars(layer)["forward"]


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


def product_for(weight: Tensor) -> Product:
    """Chooses the library that multiplies with a weight.

    Args:
        weight: (m, n).

    Returns:
        oneDNN's product where MKL's would be taken; else PyTorch's choice.
    """
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    if mkl and plain and hasattr(torch.ops.mkldnn, ONE_DNN):
        return _one_dnn
    return F.linear


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = getattr(torch.ops.mkldnn, ONE_DNN)(x, weight, bias, "none", [], "")
    return product
