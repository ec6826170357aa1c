"""Products of linear layers by the library that is fastest on this processor.

PyTorch leaves float32 products on x86 processors to MKL, which does not use the widest vectors of
those that are not Intel's; oneDNN, which comes with PyTorch as well, does, and on such processors
takes half the time. PyTorch knows no gradient of its product; it is here. The two libraries add in
different orders, so that their products differ by rounding. The environment variable
``FL_VITLORA_PRODUCTS`` names the library for a whole run; the tests take both in turn.

B·T rows, n inputs, m outputs.
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

ONE_DNN = "_linear_pointwise"  # its linear layer, with nothing after it
LIBRARIES = ("mkl", "onednn")
LIBRARY = os.environ.get("FL_VITLORA_PRODUCTS", "onednn")  # Ray's workers inherit it
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # of input, weight and bias


def product_for(weight: Tensor) -> Product:
    """Chooses the library that multiplies with a weight where no gradients are asked for.

    Args:
        weight: (m, n).

    Returns:
        oneDNN's product where MKL's would be taken and is not asked for; else PyTorch's choice.

    Raises:
        UserError: When the environment names a library that there is not.
    """
    if LIBRARY not in LIBRARIES:
        raise UserError(
            f"FL_VITLORA_PRODUCTS={LIBRARY} in the environment: expected {' or '.join(LIBRARIES)}"
        )
    if LIBRARY == "mkl":
        return F.linear
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    if mkl and plain and hasattr(torch.ops.mkldnn, ONE_DNN):
        return _one_dnn
    return F.linear


def quicken(model: nn.Module) -> None:
    """Lets all linear layers of a model that are frozen choose their library, for good.

    Their tensors stay what and where they are, and so does the gradient of what they are given.

    Args:
        model: In which what is to be trained asks for gradients.
    """
    for layer in model.modules():
        frozen = not any(parameter.requires_grad for parameter in layer.parameters())
        if type(layer) is nn.Linear and frozen:
            vars(layer)["forward"] = partial(frozen_linear, layer)  # found before that of the class


def frozen_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Computes what a frozen linear layer does.

    Args:
        layer: Its weight and bias get no gradients.
        x: (..., n).

    Returns:
        (..., m).
    """
    product = product_for(layer.weight)
    if product is F.linear or x.dtype != layer.weight.dtype:
        return F.linear(x, layer.weight, layer.bias)
    out: Tensor = _FrozenProduct.apply(x, layer.weight, layer.bias)
    return out


class _FrozenProduct(torch.autograd.Function):
    """x·Wᵀ + b, of which x alone has a gradient, g·W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _one_dnn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,), (gradient,) = ctx.saved_tensors, gradients
        return _one_dnn(gradient, weight.mT, None), None, None


def _one_dnn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = getattr(torch.ops.mkldnn, ONE_DNN)(x, weight, bias, "none", [], "")
    return product
