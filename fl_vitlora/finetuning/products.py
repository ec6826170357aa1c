"""Computes matrix products of linear layers with one of the two libraries of PyTorch.

On x86 processors, PyTorch uses MKL for float32 products. MKL does not use the widest vectors of
processors that are not from Intel. The library oneDNN, which is also part of PyTorch, uses these
vectors and takes half the time on such processors. PyTorch has no gradient for oneDNN's product, so
this module adds the gradient. On Intel processors neither library is always faster, so a run
measures both (`training.product_choice`) and calls `use`. The two libraries add numbers in
different orders, so their products differ by rounding. The environment variable
``FL_VITLORA_PRODUCTS`` names the library for a whole run. The tests run with both libraries.

A layer has n inputs and m outputs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError

ONE_DNN = "_linear_pointwise"  # the name of oneDNN's linear layer in PyTorch
LIBRARIES = ("mkl", "onednn")
DEFAULT = "onednn"
FORWARD = "forward"
VARIABLE = "FL_VITLORA_PRODUCTS"
_used = [DEFAULT]  # the library of this process, as PyTorch's own switches hold for a process
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # takes input, weight and bias


def named_library() -> str:
    """Returns the library that the environment variable names; an empty text if there is none.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    named = os.environ.get(VARIABLE, "")
    if named and named not in LIBRARIES:
        raise UserError(
            f"the environment variable {VARIABLE}={named} names an unknown library: "
            f"expected {' or '.join(LIBRARIES)}"
        )
    return named


def use(library: str) -> None:
    """Chooses the library for this process, unless the environment variable names another one.

    Args:
        library: The name of the library.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    _used[:] = [named_library() or library]


def used() -> str:
    """Returns the library of this process."""
    return named_library() or _used[0]


def has_choice() -> bool:
    """Returns True if this PyTorch has both libraries."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and hasattr(torch.ops.mkldnn, ONE_DNN)


def product_for(weight: Tensor) -> Product:
    """Returns the function that multiplies with a weight, for use without gradients.

    Args:
        weight: The weight of the layer, (m, n).

    Returns:
        A function. It uses oneDNN if PyTorch itself would use MKL, and if oneDNN is the library of
        this process. Otherwise the function is PyTorch's own `F.linear`.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return _one_dnn if plain and used() == "onednn" and has_choice() else F.linear


def quicken(model: nn.Module) -> None:
    """Makes all frozen linear layers of a model compute with the library of this process.

    The tensors of the layers do not change, and the inputs still get gradients.

    Args:
        model: A model whose trained parameters require gradients. All other parameters are frozen.
    """
    for layer in model.modules():
        if is_frozen_linear(layer) and FORWARD not in vars(layer):
            vars(layer)[FORWARD] = partial(frozen_linear, layer)  # hides the method of the class


def is_frozen_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Returns True for a linear layer that has no trained tensors."""
    frozen = not any(parameter.requires_grad for parameter in layer.parameters())
    return type(layer) is nn.Linear and frozen


def frozen_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Returns the outputs of a frozen linear layer.

    Args:
        layer: The layer. Its weight and bias get no gradients.
        x: The inputs of the layer, (..., n).

    Returns:
        The outputs of the layer, (..., m).
    """
    half = x.dtype != layer.weight.dtype or torch.is_autocast_enabled(x.device.type)
    if half or product_for(layer.weight) is F.linear:
        return F.linear(x, layer.weight, layer.bias)  # autocast converts the weight
    return one_dnn_linear(x, layer.weight, layer.bias)


def one_dnn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns x·Wᵀ + b, computed by oneDNN, with a gradient for x only.

    Args:
        x: The inputs, float32 (..., n), on a CPU.
        weight: The frozen weight W, (m, n).
        bias: The frozen bias b, (m,), or None.
    """
    out: Tensor = _FrozenProduct.apply(x, weight, bias)
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
