"""Kept features change no bit, of a client that trains alone and of clients in one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.config import Config, TrainingConfig
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, WRONG_KEY, key_holder, views_of
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import TEST
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.features import FrozenBackbone
from fl_vitlora.finetuning.products import quicken
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.models.reading import put_reader, reader_of
from fl_vitlora.rng import generator
from fl_vitlora.training.cohort import CohortTrainer, LocalJob
from fl_vitlora.training.inputs import (
    features_of,
    features_of_shard,
    frozen_of,
    inputs_of,
    with_features,
)
from fl_vitlora.training.local import LocalTask, Trained, evaluate
from tests.conftest import MakeBackbone

METHODS: dict[str, dict[str, Any]] = {
    "head": {"method": "head"},
    "losa": {"method": "losa"},
    "losa of channels": {"method": "losa", "parameters": {"mixers": "channels"}},
}
SIZES = (13, 5, 21, 8, 1)
CPU, FLOAT = torch.device("cpu"), torch.float32


def made_up(size: int, seed: int) -> Shard:
    draw = generator(seed, "features")
    images = torch.randint(0, 256, (size, 3, 16, 16), generator=draw, dtype=torch.uint8)
    return Shard(images=images, labels=torch.randint(0, 10, (size,), generator=draw))


def halves(backbone: Backbone) -> FrozenBackbone:
    found = frozen_of(backbone.model)
    assert found is not None
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quick", [True, False])
def test_features_do_not_depend_on_the_batch(
    method: str, make_backbone: MakeBackbone, *, quick: bool
):
    """Every batch size and every order gives the bits of one image at a time."""
    backbone = make_backbone(**METHODS[method])
    if quick:
        quicken(backbone.model)
    frozen, images = halves(backbone), made_up(67, 0).images
    alone = torch.cat([features_of(frozen, image[None], FLOAT) for image in images])
    order = torch.randperm(67, generator=generator(0, "order"))
    for size in (2, 3, 7, 8, 16, 33, 64, 67):
        batches = [features_of(frozen, part, FLOAT) for part in images[order].split(size)]
        assert torch.equal(torch.cat(batches), alone[order]), size


def keeping_features(backbone: Backbone, job: LocalJob) -> LocalJob:
    put_reader(backbone.model, job.reader)
    features = features_of_shard(halves(backbone), job.shard, CPU, FLOAT)
    return replace(job, shard=replace(job.shard, features=features))


def readers(backbone: Backbone, *, own: bool) -> list[PatchReader]:
    first = reader_of(backbone)
    return [first.with_weight(first.weight * (1 + number * own)) for number in range(len(SIZES))]


def trained(backbone: Backbone, *, kept: bool, stacked: bool, own: bool = False) -> list[Trained]:
    start = methods.export_state(backbone.model)
    jobs = [
        LocalJob(
            start={name: tensor + 0.01 * number for name, tensor in start.items()},
            shard=made_up(size, number),
            task=LocalTask(learning_rate=0.01),
            generator=generator(number, "order"),
            reader=reader,
        )
        for number, (size, reader) in enumerate(zip(SIZES, readers(backbone, own=own), strict=True))
    ]
    if kept:
        jobs = [keeping_features(backbone, job) for job in jobs]
    trainer = CohortTrainer(
        backbone=backbone,
        stacks=stacked,
        config=TrainingConfig(batch_size=4, epochs=2),
        precision=FLOAT,
    )
    return trainer.train(jobs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_kept_features_give_the_bits_of_features_computed_in_each_step(
    method: str, make_backbone: MakeBackbone, *, stacked: bool, own: bool
):
    one, other = (
        trained(make_backbone(**METHODS[method]), kept=kept, stacked=stacked, own=own)
        for kept in (True, False)
    )
    for kept, computed in zip(one, other, strict=True):
        assert (kept.loss, kept.steps) == (computed.loss, computed.steps)
        for name, tensor in kept.state.items():
            assert torch.equal(tensor, computed.state[name]), name
    assert not torch.equal(one[0].state["head.weight"], one[1].state["head.weight"])


@pytest.mark.parametrize("stacked", [True, False])
def test_a_step_from_kept_features_never_computes_the_backbone(
    make_backbone: MakeBackbone, *, stacked: bool
):
    backbone = make_backbone(method="head")
    calls: list[Any] = []
    vit: Any = backbone.model
    vit.blocks[0].register_forward_hook(lambda *given: calls.append(given))
    trained(backbone, kept=False, stacked=stacked)
    assert len(calls) == 2 * (4 + 2 + 6 + 2 + 1)  # one for each client and step
    calls.clear()
    trained(backbone, kept=True, stacked=stacked)
    assert len(calls) == len(SIZES)  # only to compute the features once


@pytest.mark.parametrize("method", ["lora", "patch_embed", "norm", "full"])
def test_a_method_that_changes_the_backbone_has_no_features(
    method: str, make_backbone: MakeBackbone
):
    backbone, shard = make_backbone(method=method), made_up(3, 0)
    assert frozen_of(backbone.model) is None
    inputs = inputs_of(shard, None, CPU, FLOAT)
    assert torch.equal(inputs(torch.tensor([2, 0])), shard.images[[2, 0]])


def test_a_model_with_two_classifiers_has_no_features(make_backbone: MakeBackbone):
    """A distilled DeiT averages the outputs of two classifiers."""
    model: Any = make_backbone(method="head").model
    model.head_dist = torch.nn.Linear(96, 10)
    assert frozen_of(model) is None


def test_features_are_computed_in_evaluation_mode(make_backbone: MakeBackbone):
    backbone = make_backbone(method="head")
    model: Any = backbone.model
    model.blocks[0].mlp.drop1 = torch.nn.Dropout(0.5)
    images: Tensor = made_up(4, 0).images
    model.eval()
    expected = features_of(halves(backbone), images, FLOAT)
    model.train()
    assert torch.equal(features_of(halves(backbone), images, FLOAT), expected)


@pytest.mark.parametrize("method", METHODS)
def test_an_evaluation_from_kept_features_is_the_one_that_computes_them(
    make_backbone: MakeBackbone, images: Tensor, method: str
):
    """Accuracy and loss agree to the last bit; the model itself agrees up to rounding."""
    built = make_backbone(**METHODS[method])
    state = methods.export_state(built.model)
    state = {n: t + 0.1 * torch.randn(t.shape, generator=generator(0, n)) for n, t in state.items()}
    shard = Shard(images=images, labels=torch.arange(len(images)) % 10)
    kept = with_features(built.model, shard, 10**9, torch.float32)
    assert kept.features is not None
    assert with_features(built.model, shard, 10, torch.float32).features is None
    found = [evaluate(built, state, each) for each in (shard, kept)]
    assert found[0] == found[1]
    with torch.no_grad():
        logits = built.model.eval()(normalize(images))
    expected = float(F.cross_entropy(logits, shard.labels))
    assert found[0][1] == pytest.approx(expected, rel=1e-5)


def test_views_of_other_images_have_no_features_of_the_first_ones(images: Tensor):
    holder = key_holder(Config(), patch_size=4, image_shape=(3, 16, 16), secret=bytes(range(32)))
    shard = Shard(
        images=images, labels=torch.zeros(len(images), dtype=torch.int64), features=images
    )
    views = views_of(shard, holder, TEST)
    assert views[RIGHT_KEY] is shard
    assert [views[name].features for name in (WRONG_KEY, NO_KEY)] == [None, None]
