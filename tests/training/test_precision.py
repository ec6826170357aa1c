"""The number format of a model: what is chosen, and what it does to training and attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods, products
from fl_vitlora.models.reading import reader_of
from fl_vitlora.rng import generator
from fl_vitlora.training.local import LocalTask, evaluate, train
from fl_vitlora.training.precision import SHORT, autocast, best_precision, choose_attention
from fl_vitlora.training.stacking import Stack
from tests.conftest import MakeBackbone
from tests.training.test_local import shard as shard  # noqa: PLC0414 - a fixture

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_on_a_cpu_half_precision_must_be_asked_for(wanted: str, found: torch.dtype):
    assert best_precision(CPU, wanted) == found


@pytest.mark.parametrize("quick", [False, True])
def test_bfloat16_learns_and_keeps_weights_in_float32(
    quick: bool, make_backbone: MakeBackbone, shard: Shard
):
    results = {}
    for precision in (torch.float32, torch.bfloat16):
        backbone = make_backbone()
        if quick:
            products.quicken(backbone.model)
            choose_attention(backbone.model, 16, CPU, precision)
        before = methods.export_state(backbone.model)
        done = train(
            backbone,
            before,
            shard,
            config=TrainingConfig(batch_size=16, epochs=8),
            task=LocalTask(learning_rate=5e-3),
            generator=generator(0, "batches"),
            precision=precision,
        )
        assert {tensor.dtype for tensor in done.state.values()} == {torch.float32}
        _, start = evaluate(backbone, before, shard, precision)
        _, end = evaluate(backbone, done.state, shard, precision)
        assert end < 0.8 * start
        results[precision] = done.loss
    assert results[torch.bfloat16] == pytest.approx(results[torch.float32], rel=0.1)
    assert results[torch.bfloat16] != results[torch.float32]


def test_every_frozen_layer_computes_in_bfloat16(make_backbone: MakeBackbone):
    """With a library of its own, a layer would stay in float32, and nothing would be faster."""
    model = make_backbone().model
    products.quicken(model)
    found = []
    for layer in model.modules():
        if products.is_frozen_linear(layer):
            layer.register_forward_hook(lambda _, inputs, out: found.append(out.dtype))
    with autocast(CPU, torch.bfloat16):
        model(torch.zeros(2, 3, 16, 16))
    assert found
    assert set(found) == {torch.bfloat16}


def test_both_ways_of_attention_give_the_same_numbers(make_backbone: MakeBackbone):
    backbone = make_backbone()
    model, images = backbone.model.double(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    whole = model(images)
    choose_attention(model, 16, CPU, torch.bfloat16)
    assert fused(model) == {False}
    torch.testing.assert_close(model(images), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("patches", "device", "precision"),
    [
        (16, CPU, torch.float32),
        (SHORT + 1, CPU, torch.bfloat16),  # their weights would fill the memory
        (16, torch.device("cuda"), torch.bfloat16),
    ],
)
def test_otherwise_attention_stays_as_timm_has_it(
    patches: int, device: torch.device, precision: torch.dtype, make_backbone: MakeBackbone
):
    model = make_backbone().model
    before = fused(model)
    choose_attention(model, patches, device, precision)
    assert fused(model) == before


def fused(model: Any) -> set[bool]:
    return {block.attn.fused_attn for block in model.blocks}


@pytest.mark.parametrize("stacked", [False, True])
def test_the_head_computes_in_float32(stacked: bool, make_backbone: MakeBackbone):
    """Its logits are small differences of large terms here, which bfloat16 does not have."""
    backbone = make_backbone()
    model: Any = backbone.model
    head = model.head
    features = torch.full((4, head.in_features), 1.0)
    with torch.no_grad():
        head.weight.fill_(1.0)
        head.weight[1] += 2**-12
        head.bias.fill_(-float(head.in_features))
    if stacked:
        stack = Stack(model)
        stack.load([methods.export_state(model)] * 2, [reader_of(backbone)] * 2)
        stack.set_batch_sizes((2, 2))
        head = stack.model.get_submodule("head")
    with autocast(CPU, torch.bfloat16):
        logits = head(features)
    assert logits.dtype == torch.float32
    assert torch.equal(logits[:, 0], torch.zeros(4))
    assert torch.equal(logits[:, 1], torch.full((4,), features.shape[1] * 2.0**-12))
