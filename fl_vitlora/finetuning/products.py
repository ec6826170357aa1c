"""Computes matrix products of linear layers with the library that is fastest on this processor.

On x86 processors, PyTorch uses MKL for float32 products. MKL does not use the widest vectors of
processors that are not from Intel. The library oneDNN, which is also part of PyTorch, uses these
vectors and takes half the time on such processors. PyTorch has no gradient for oneDNN's product, so
this module adds the gradient. The two libraries add numbers in different orders, so their products
differ by rounding. The environment variable ``FL_VITLORA_PRODUCTS`` names the library for a whole
run. The tests run with both libraries.

A layer has n inputs and m outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError

ONE_DNN = "_linear_pointwise"  # the name of oneDNN's linear layer in PyTorch
LIBRARIES = ("mkl", "onednn")
LIBRARY = os.environ.get("FL_VITLORA_PRODUCTS", "onednn")  # Ray's workers inherit this variable
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # takes input, weight and bias


def product_for(weight: Tensor) -> Product:
    """Returns the fastest function that multiplies with a weight, for use without gradients.

    Args:
        weight: The weight of the layer, (m, n).

    Returns:
        A function. It uses oneDNN if PyTorch itself would use MKL, and if the environment variable
        does not demand MKL. Otherwise the function is PyTorch's own `F.linear`.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    if LIBRARY not in LIBRARIES:
        raise UserError(
            f"the environment variable FL_VITLORA_PRODUCTS={LIBRARY} names an unknown library: "
            f"expected {' or '.join(LIBRARIES)}"
        )
    if LIBRARY == "mkl":
        return F.linear
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    if mkl and plain and hasattr(torch.ops.mkldnn, ONE_DNN):
        return _one_dnn
    return F.linear


def quicken(model: nn.Module) -> None:
    """Makes all frozen linear layers of a model compute with the fastest library, permanently.

    The tensors of the layers do not change, and the inputs still get gradients.

    Args:
        model: A model whose trained parameters require gradients. All other parameters are frozen.
    """
    for layer in model.modules():
        frozen = not any(parameter.requires_grad for parameter in layer.parameters())
        if type(layer) is nn.Linear and frozen:
            vars(layer)["forward"] = partial(frozen_linear, layer)  # hides the method of the class


def frozen_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Returns the outputs of a frozen linear layer.

    Args:
        layer: The layer. Its weight and bias get no gradients.
        x: The inputs of the layer, (..., n).

    Returns:
        The outputs of the layer, (..., m).
    """
    product = product_for(layer.weight)
    if product is F.linear or x.dtype != layer.weight.dtype:
        return F.linear(x, layer.weight, layer.bias)
    out: Tensor = _FrozenProduct.apply(x, layer.weight, layer.bias)
    return out


class _FrozenProduct(torch.autograd.Function):
    """The function x·Wᵀ + b, which has a gradient only for x: g·W if g is that of the outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _one_dnn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        return _one_dnn(gradient, weight.mT, None), None, None


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x·Wᵀ + b, computed by oneDNN."""
    product: Tensor = getattr(torch.ops.mkldnn, ONE_DNN)(x, weight, bias, "none", [], "")
    return product
