"""Computes matrix products of linear layers with one of the two libraries of PyTorch.

On x86 processors, PyTorch uses the library MKL for float32 products. On processors that are not
from Intel, MKL does not use the widest vector instructions. The library oneDNN, which is also part
of PyTorch, uses these instructions and takes half the time of MKL on these processors. PyTorch has
no gradient for oneDNN's product, so this module adds the gradient. On Intel processors neither
library is always faster. Therefore a run measures MKL and oneDNN (`training.product_choice`), and
calls `use` with the faster library. The two libraries add numbers in different orders, so their
products differ by rounding. The environment variable ``FL_VITLORA_PRODUCTS`` sets the library for a
whole run. The tests run with each of the two libraries.

Letters in shapes: n inputs, m outputs of a layer.
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
_used = [DEFAULT]  # the library of this process; PyTorch's own switches are also per process
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # arguments: input, weight and bias


def named_library() -> str:
    """Returns the library that the environment variable names; an empty text if it is not set.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    named = os.environ.get(VARIABLE, "")
    if named and named not in LIBRARIES:
        raise UserError(
            f"the environment variable {VARIABLE}={named} names an unknown library; "
            f"expected {' or '.join(LIBRARIES)}"
        )
    return named


def use(library: str) -> None:
    """Sets the library for this process; the environment variable has priority.

    Args:
        library: The name of the library that is used if the environment variable is not set.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    _used[:] = [named_library() or library]


def used() -> str:
    """Returns the name of the library that this process uses."""
    return named_library() or _used[0]


def has_choice() -> bool:
    """Returns True if the installed PyTorch has both MKL and oneDNN."""
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return mkl and hasattr(torch.ops.mkldnn, ONE_DNN)


def product_for(weight: Tensor) -> Product:
    """Returns the function that multiplies inputs with a weight, for use without gradients.

    Args:
        weight: The weight of the layer, (m, n).

    Returns:
        A function that uses oneDNN, if PyTorch itself would use MKL and oneDNN is the library of
        this process. In all other cases, the result is PyTorch's own function `F.linear`.

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
            vars(layer)[FORWARD] = partial(frozen_linear, layer)  # hides the class's own `forward`


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
    """The function x·Wᵀ + b with a gradient only for x, g·W for the gradient g of the outputs."""

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
