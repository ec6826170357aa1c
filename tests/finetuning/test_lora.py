"""A LoRA layer: nothing at first, then W + s·B·A on its slices, and merged the same as adapted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fl_vitlora.finetuning.lora import Adapter, LoRALinear

SLICES = {"q": (0, 4), "k": (4, 8), "v": (8, 12)}
CHOICES = st.lists(st.sampled_from(sorted(SLICES)), min_size=1, max_size=3, unique=True)


def make(names: list[str], *, rank: int = 2, alpha: float = 6.0, bias: bool = True) -> LoRALinear:
    """A layer of 5 inputs and 12 outputs in float64, with random B."""
    torch.manual_seed(0)
    layer = LoRALinear(
        nn.Linear(5, 12, bias=bias), {n: SLICES[n] for n in names}, rank, alpha
    ).double()
    for adapter in layer.adapters.values():
        assert isinstance(adapter, Adapter)
        nn.init.normal_(adapter.lora_B)
    return layer


@torch.no_grad()
def slow_forward(layer: LoRALinear, x: Tensor) -> list[float]:
    """Output by output with Python's sums: (W x + b)_i + s · Σ_r B_ir Σ_j A_rj x_j."""
    outputs = []
    for i in range(layer.base.out_features):
        value = sum(float(w) * float(v) for w, v in zip(layer.base.weight[i], x, strict=True))
        if layer.base.bias is not None:
            value += float(layer.base.bias[i])
        for name, (start, end) in layer.slices.items():
            adapter = layer.adapters[name]
            assert isinstance(adapter, Adapter)
            if start <= i < end:
                value += layer.scale * sum(
                    float(adapter.lora_B[i - start, r])
                    * sum(float(a) * float(v) for a, v in zip(adapter.lora_A[r], x, strict=True))
                    for r in range(len(adapter.lora_A))
                )
        outputs.append(value)
    return outputs


@given(names=CHOICES, rank=st.integers(1, 4), alpha=st.sampled_from([1.0, 3.0, 8.0]))
def test_the_layer_computes_what_a_slow_loop_does(names: list[str], rank: int, alpha: float):
    layer, x = make(names, rank=rank, alpha=alpha), torch.randn(5, dtype=torch.float64)
    assert layer(x.view(1, 1, 5)).flatten().tolist() == pytest.approx(slow_forward(layer, x))


@given(names=CHOICES, bias=st.booleans())
def test_merged_computes_the_same_as_adapted(names: list[str], bias: bool):
    layer, x = make(names, bias=bias), torch.randn(2, 3, 5, dtype=torch.float64)
    merged = layer.merged()
    assert type(merged) is nn.Linear
    assert (merged.bias is not None) == bias
    assert torch.allclose(merged(x), layer(x), atol=1e-12, rtol=0)


def test_merging_leaves_the_layer_as_it_is():
    layer = make(["q", "v"])
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.merged().weight.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_fresh_layer_is_the_plain_one():
    torch.manual_seed(0)
    base, x = nn.Linear(5, 12), torch.randn(2, 3, 5)
    assert torch.equal(LoRALinear(base, SLICES, 2, 8.0)(x), base(x))


def test_adapters_on_q_and_v_leave_the_middle_third_alone():
    layer, x = make(["q", "v"]), torch.randn(2, 3, 5, dtype=torch.float64)
    difference = (layer(x) - layer.base(x)).abs().amax(dim=(0, 1))
    assert (difference[:4] > 0).all()
    assert (difference[4:8] == 0).all()
    assert (difference[8:] > 0).all()


def test_the_order_in_which_slices_are_named_does_not_matter():
    forward, backward = make(["q", "v"]), make(["v", "q"])
    assert list(forward.slices) == list(backward.slices) == ["q", "v"]


def test_the_scale_is_alpha_over_rank_and_not_rounded():
    assert LoRALinear(nn.Linear(20, 18), {"q": (0, 16)}, 16, 8.0).scale == 0.5
    assert LoRALinear(nn.Linear(20, 18), {"q": (0, 16)}, 3, 8.0).scale == pytest.approx(8 / 3)


def test_a_starts_uniform_within_kaimings_bound_and_b_at_zero():
    """Kaiming with a = √5 over n inputs: every entry of A in ±1/√n."""
    adapter = Adapter(100, 7, 3)
    assert adapter.lora_A.shape == (3, 100)
    assert 0.09 < float(adapter.lora_A.detach().abs().max()) <= 0.1
    assert not adapter.lora_B.any()


def test_in_the_first_step_only_b_learns():
    """With B = 0 the gradient of A is exactly zero (facts.md, section 3)."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(5, 12), {"q": (0, 4)}, 2, 8.0)
    layer(torch.randn(2, 3, 5)).square().sum().backward()
    adapter = layer.adapters["q"]
    assert isinstance(adapter, Adapter)
    assert adapter.lora_A.grad is not None
    assert adapter.lora_B.grad is not None
    assert not adapter.lora_A.grad.any()
    assert adapter.lora_B.grad.any()


def test_whoever_reaches_for_the_weight_fails():
    assert not hasattr(make(["q"]), "weight")
