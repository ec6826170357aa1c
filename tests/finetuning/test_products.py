"""Whichever library multiplies, the product and its gradient are the usual ones to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, products
from fl_vitlora.finetuning.products import frozen_linear, product_for, quicken
from fl_vitlora.models.backbone import normalize
from tests.conftest import MakeBackbone

DTYPES = [torch.float32, torch.float64, torch.bfloat16]


@given(
    batch=st.lists(st.integers(1, 5), max_size=2),
    inputs=st.integers(1, 40),
    outs=st.integers(1, 40),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_any_product_is_the_usual_one(
    batch: list[int], inputs: int, outs: int, bias: bool, dtype: torch.dtype
):
    torch.manual_seed(0)
    weight, x = torch.randn(outs, inputs, dtype=dtype), torch.randn(3, *batch, inputs, dtype=dtype)
    one = torch.randn(outs, dtype=dtype) if bias else None
    with torch.inference_mode():
        for given in (x, x.transpose(0, -2) if batch else x[::2]):
            found = product_for(weight)(given, weight, one)
            assert found.shape == (*given.shape[:-1], outs)
            assert torch.allclose(found, F.linear(given, weight, one), rtol=1e-4, atol=1e-4)


@given(
    batch=st.lists(st.integers(1, 5), max_size=2),
    inputs=st.integers(1, 40),
    outs=st.integers(1, 40),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    turned=st.booleans(),
)
def test_the_gradient_of_a_frozen_layer_is_the_usual_one(
    *, batch: list[int], inputs: int, outs: int, bias: bool, dtype: torch.dtype, turned: bool
):
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outs, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)
    x = torch.randn(3, *batch, inputs, dtype=dtype)
    x = (x.transpose(0, -2) if turned and batch else x).requires_grad_()
    pull = torch.randn(*x.shape[:-1], outs, dtype=dtype)
    pull = pull.mT.contiguous().mT if turned else pull
    expected = F.linear(x, layer.weight, layer.bias)
    found = frozen_linear(layer, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (ours,), (theirs,) = (torch.autograd.grad(out, x, pull) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_a_model_learns_the_same(method: str, make_backbone: MakeBackbone, images: Tensor):
    model = make_backbone(method=method).model
    quick = copy.deepcopy(model)
    quicken(quick)
    for one in (model, quick):
        one(normalize(images)).square().sum().backward()
    gradients = [
        {name: parameter.grad for name, parameter in methods.trainable(one).items()}
        for one in (model, quick)
    ]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)


def test_what_is_trained_keeps_its_gradient(make_backbone: MakeBackbone):
    model = make_backbone(method="full").model
    before = [vars(module).get("forward") for module in model.modules()]
    quicken(model)
    assert [vars(module).get("forward") for module in model.modules()] == before


def test_a_copy_computes_with_its_own_weights():
    layer = nn.Linear(3, 4).requires_grad_(requires_grad=False)
    quicken(layer)
    other = copy.deepcopy(layer)
    other.weight.zero_()
    other.bias.zero_()
    x = torch.randn(2, 3)
    assert other(x).abs().max() == 0
    assert layer(x).abs().max() > 0


def test_the_environment_names_the_library(monkeypatch: pytest.MonkeyPatch):
    weight = torch.ones(2, 3)
    monkeypatch.setenv(products.VARIABLE, "mkl")
    assert product_for(weight) is F.linear
    monkeypatch.setenv(products.VARIABLE, "openblas")
    with pytest.raises(
        UserError, match="PRODUCTS=openblas names an unknown library; expected mkl or"
    ):
        product_for(weight)
