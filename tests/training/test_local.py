"""Local training is a pure function: by hand on the head, and by its properties on real shards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.config import DataConfig, TrainingConfig
from fl_vitlora.data import sources
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.rng import generator
from fl_vitlora.state import State, l2_norm, subtract
from fl_vitlora.training.local import LocalTask, evaluate, scheduled_rate, train
from fl_vitlora.training.objective import Proximal
from tests.conftest import MakeBackbone

LORA_A, LORA_B = ".lora_A", ".lora_B"


@pytest.fixture(scope="module")
def shard() -> Shard:
    """Forty real digits, plain."""
    images, _ = sources.load(DataConfig(limit=40))
    return Shard(images.read(np.arange(40), 16, 16), torch.from_numpy(images.labels))


def local(
    backbone: Backbone, shard: Shard, task: LocalTask | None = None, **training: Any
) -> tuple[State, State, float]:
    """Trains from the model's present state; returns the states before and after, and the loss."""
    plain = {"patch_embed_rate": 1.0, "head_rate": 1.0, "batch_size": 16, "epochs": 2}
    before = methods.export_state(backbone.model)
    done = train(
        backbone,
        before,
        shard,
        config=TrainingConfig(**{**plain, **training}),
        task=task or LocalTask(learning_rate=5e-3),
        generator=generator(0, "batches"),
    )
    return before, done.state, done.loss


def one_step_of_sgd(backbone: Backbone, shard: Shard, **options: Any) -> tuple[State, State, float]:
    """A single step on the whole shard, with no momentum."""
    settings: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "epochs": 1, "batch_size": 40}
    task = options.pop("task", LocalTask(learning_rate=0.1))
    return local(backbone, shard, task, **settings, **options)


def head_gradient(backbone: Backbone, shard: Shard) -> tuple[Tensor, Tensor]:
    """Softmax minus one-hot, times features: the gradient of the cross-entropy, by hand."""
    with torch.no_grad():
        model: Any = backbone.model
        features = model.forward_features(normalize(shard.images))[:, 0]
        surprise = model(normalize(shard.images)).softmax(-1)
        surprise -= F.one_hot(shard.labels, surprise.shape[-1])
        return surprise.T @ features / len(shard), surprise.mean(dim=0)


@pytest.mark.parametrize(
    ("config", "rounds", "rates"),
    [
        (TrainingConfig(learning_rate=1.0, schedule="constant"), 3, [1, 1, 1]),
        (TrainingConfig(learning_rate=1.0, schedule="cosine"), 2, [1, 0.5]),
        (TrainingConfig(learning_rate=2.0, schedule="cosine"), 3, [2, 1.5, 0.5]),
        (
            TrainingConfig(learning_rate=1.0, schedule="constant", warmup_rounds=3),
            5,
            [0.25, 0.5, 0.75, 1, 1],
        ),
        (
            TrainingConfig(learning_rate=1.0, schedule="cosine", warmup_rounds=1),
            3,
            [0.5, 1, 0.5],
        ),
        (TrainingConfig(learning_rate=1.0, warmup_rounds=9), 2, [0.1, 0.2]),
    ],
)
def test_the_rate_follows_its_schedule(config: TrainingConfig, rounds: int, rates: list[float]):
    found = [scheduled_rate(config, r, rounds) for r in range(1, rounds + 1)]
    assert found == pytest.approx(rates)


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_training_lowers_the_loss(method: str, make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone(method=method)
    before, after, _ = local(backbone, shard, LocalTask(learning_rate=5e-4), epochs=12)
    assert evaluate(backbone, after, shard)[1] < 0.95 * evaluate(backbone, before, shard)[1]


def test_equal_generators_give_equal_bits(make_backbone: MakeBackbone, shard: Shard):
    runs = [local(make_backbone(), shard)[1:] for _ in range(2)]
    assert all(torch.equal(runs[0][0][name], tensor) for name, tensor in runs[1][0].items())
    assert runs[0][1] == runs[1][1]


def test_a_workspace_remembers_nothing_of_the_client_before(
    make_backbone: MakeBackbone, shard: Shard
):
    used, fresh = make_backbone(), make_backbone()
    start = methods.export_state(fresh.model)
    local(used, Shard(shard.images.flip(0), shard.labels), epochs=3)
    methods.load_state(used.model, start)
    again, first = local(used, shard)[1], local(fresh, shard)[1]
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_frozen_tensors_stay_bit_by_bit(method: str, make_backbone: MakeBackbone, shard: Shard):
    model = (backbone := make_backbone(method=method)).model
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before, after, _ = local(backbone, shard, weight_decay=0.1)
    assert all(torch.equal(model.get_parameter(name), was) for name, was in frozen.items())
    assert all(torch.equal(model.get_buffer(name), was) for name, was in buffers.items())
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_what_rests_in_a_round_does_not_move(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone()
    resting = frozenset(n for n in methods.trainable(backbone.model) if n.endswith(LORA_A))
    task = LocalTask(learning_rate=5e-3, frozen=resting, terms=(Proximal(0.1),))
    before, after, _ = local(backbone, shard, task, weight_decay=0.1)
    assert {name for name in before if torch.equal(before[name], after[name])} == resting


def test_the_given_state_is_not_written_to(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone()
    copy = methods.export_state(backbone.model)
    before, _, _ = local(backbone, shard)
    assert all(torch.equal(copy[name], tensor) for name, tensor in before.items())


def test_a_step_on_the_head_is_the_one_computed_by_hand(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone(method="head")
    gradient, bias_gradient = head_gradient(backbone, shard)
    expected_loss = evaluate(backbone, methods.export_state(backbone.model), shard)[1]
    before, after, loss = one_step_of_sgd(backbone, shard)
    moved = subtract(after, before)
    assert torch.allclose(moved["head.weight"], -0.1 * gradient, atol=1e-6)
    assert torch.allclose(moved["head.bias"], -0.1 * bias_gradient, atol=1e-6)
    assert loss == pytest.approx(expected_loss, rel=1e-5)


def test_weight_decay_of_sgd_adds_the_weight_to_its_gradient(
    make_backbone: MakeBackbone, shard: Shard
):
    backbone = make_backbone(method="head")
    gradient, _ = head_gradient(backbone, shard)
    before, after, _ = one_step_of_sgd(backbone, shard, weight_decay=0.5)
    expected = before["head.weight"] - 0.1 * (gradient + 0.5 * before["head.weight"])
    assert torch.allclose(after["head.weight"], expected, atol=1e-6)


def test_no_penalty_is_the_same_as_a_penalty_of_zero(make_backbone: MakeBackbone, shard: Shard):
    plain = local(make_backbone(), shard, LocalTask(learning_rate=5e-3))[1]
    zero = local(make_backbone(), shard, LocalTask(learning_rate=5e-3, terms=(Proximal(0.0),)))[1]
    assert all(torch.equal(plain[name], tensor) for name, tensor in zero.items())


def test_the_penalty_pulls_with_mu_times_the_way_from_the_start(
    make_backbone: MakeBackbone, shard: Shard
):
    """The first step starts at w₀ and is not pulled; the second by η·μ·(w₁ - w₀) more."""
    backbone = make_backbone(method="head")
    rate, mu = 0.1, 2.0
    start, first, _ = one_step_of_sgd(backbone, shard)
    gradient, bias_gradient = head_gradient(backbone, shard)  # at the first step's end
    methods.load_state(backbone.model, start)
    task = LocalTask(learning_rate=rate, terms=(Proximal(mu),))
    _, second, loss = local(
        backbone, shard, task, optimizer="sgd", momentum=0.0, epochs=2, batch_size=40
    )
    for name, slope in (("head.weight", gradient), ("head.bias", bias_gradient)):
        pulled = slope + mu * (first[name] - start[name])
        assert torch.allclose(second[name], first[name] - rate * pulled, atol=1e-6)
    unpenalized = [evaluate(backbone, state, shard)[1] for state in (start, first)]
    assert loss == pytest.approx(sum(unpenalized) / 2, rel=1e-5)


def test_a_heavy_penalty_keeps_weights_near_their_start(make_backbone: MakeBackbone, shard: Shard):
    free, held = (
        l2_norm(subtract(*local(make_backbone(), shard, task, epochs=4)[1::-1]))
        for task in (
            LocalTask(learning_rate=1e-3),
            LocalTask(learning_rate=1e-3, terms=(Proximal(1000.0),)),
        )
    )
    assert held < 0.5 * free


def test_patch_embedding_and_head_have_rates_of_their_own(
    make_backbone: MakeBackbone, shard: Shard
):
    plain = subtract(*one_step_of_sgd(make_backbone(), shard)[1::-1])
    factors = {"patch_embed_rate": 3.0, "head_rate": 0.5}
    scaled = subtract(*one_step_of_sgd(make_backbone(), shard, **factors)[1::-1])
    for name, step in plain.items():
        factor = {"patch_embed": 3.0, "head": 0.5}.get(methods.group_of(name), 1.0)
        assert torch.allclose(scaled[name], factor * step, atol=1e-6), name


@pytest.mark.parametrize("limit", [0.01, 1.0, 1e6])
def test_a_gradient_is_cut_to_its_norm(limit: float, make_backbone: MakeBackbone, shard: Shard):
    free = subtract(*one_step_of_sgd(make_backbone(), shard)[1::-1])
    cut = subtract(*one_step_of_sgd(make_backbone(), shard, clip_norm=limit)[1::-1])
    assert l2_norm(cut) == pytest.approx(min(0.1 * limit, l2_norm(free)), rel=1e-3)


def test_every_image_is_seen_once_an_epoch_in_batches_of_like_size(
    make_backbone: MakeBackbone, shard: Shard
):
    """40 images in batches of at most 16 are 3 steps; a model that only counts sees them all."""
    backbone = make_backbone(method="lora")
    seen: list[Tensor] = []

    def count(module: object, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0])

    backbone.model.register_forward_pre_hook(count)
    local(backbone, shard, epochs=2, batch_size=16)
    assert [len(batch) for batch in seen] == [14, 13, 13] * 2
    expected = normalize(shard.images).flatten(1).sum(1).sort().values
    epochs = [torch.cat(seen[i : i + 3]).flatten(1).sum(1) for i in (0, 3)]
    assert all(torch.equal(epoch.sort().values, expected) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_evaluation_is_the_mean_over_images(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone()
    state = methods.export_state(backbone.model)
    correct, loss = 0, 0.0
    for image, label in zip(shard.images, shard.labels.tolist(), strict=True):
        logits = backbone.model(normalize(image[None]))[0].double().tolist()
        correct += max(range(10), key=logits.__getitem__) == label
        loss += float(np.log(np.exp(logits).sum())) - logits[label]
    accuracy, mean_loss = evaluate(backbone, state, shard)
    assert accuracy == correct / 40
    assert mean_loss == pytest.approx(loss / 40, rel=1e-5)


def test_evaluation_runs_over_more_than_one_batch(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone()
    state = methods.export_state(backbone.model)
    many = replace(shard, images=shard.images.repeat(7, 1, 1, 1), labels=shard.labels.repeat(7))
    assert len(many) > 256
    once = evaluate(backbone, state, shard)
    assert evaluate(backbone, state, many) == pytest.approx(once, rel=1e-5)  # of 256 float32 terms
