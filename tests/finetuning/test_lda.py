"""The head of a discriminant analysis: from sums of clients it is that of all images together."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.errors import UserError
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.server_method import after_round, check_not_clipped
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.lda import LDA, discriminant, upper_triangle
from fl_vitlora.finetuning.method import Method
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.rng import generator
from fl_vitlora.state import State
from fl_vitlora.training.local import LocalTask, train
from tests.conftest import MakeBackbone
from tests.in_process import precision

CLASSES = 10
METHOD = "lora+lda"
STATISTICS = ("lora:class_statistics.moments", "lora:class_statistics.means")


def statistics_of(
    features: Tensor, labels: Tensor, classes: int = CLASSES
) -> tuple[Tensor, Tensor]:
    """The moments and the means of the features (N, D) of one owner of all images."""
    z = torch.cat([features, torch.ones(len(features), 1).to(features)], dim=1)
    chosen = torch.nn.functional.one_hot(labels, classes).to(z)
    return upper_triangle(z.T @ z / len(z)), chosen.T @ z / len(z)


def shard(count: int, seed: int) -> Shard:
    draw = generator(seed, "test shard")
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw)
    return Shard(images, torch.randint(0, CLASSES, (count,), generator=draw))


def method_of(backbone: Backbone) -> Method:
    prepared = methods.prepared(backbone.model)
    assert prepared is not None
    return prepared.method


def measured(backbone: Backbone, own: Shard) -> State:
    """Returns the tensors of a client after round 1."""
    start = methods.export_state(backbone.model)
    return train(
        backbone,
        start,
        own,
        config=TrainingConfig(batch_size=4, epochs=2),
        task=LocalTask(learning_rate=0.1, frozen=frozenset(start) - set(STATISTICS)),
        generator=generator(0, "order"),
    ).state


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.7, 1.0])
def test_the_head_is_that_of_scikit_learn(shrinkage: float):
    draw = np.random.default_rng(3)
    labels = draw.choice(3, size=400, p=[0.6, 0.3, 0.1])
    mix = draw.normal(size=(5, 5))
    features = draw.normal(size=(400, 5)) @ mix + 2.0 * draw.normal(size=(3, 5))[labels]
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features, labels)
    moments, means = statistics_of(torch.from_numpy(features), torch.from_numpy(labels), 3)
    weight, bias = discriminant(moments, means, shrinkage)
    assert np.allclose(weight, other.coef_, rtol=1e-8, atol=1e-10)
    assert np.allclose(bias, other.intercept_, rtol=1e-8, atol=1e-10)


def test_sums_of_unequal_clients_give_the_head_of_all_images(make_backbone: MakeBackbone):
    shards = [shard(17, 0), shard(40, 1), shard(5, 2)]
    total = sum(len(own) for own in shards)
    with precision(torch.float64):
        backbone = make_backbone(method=METHOD)
        model: Any = backbone.model.double()
        start = methods.export_state(model)
        states = [(len(own) / total, measured(backbone, own)) for own in shards]
        methods.load_state(model, start)
        images = normalize(torch.cat([own.images for own in shards]))
        with torch.no_grad():
            features = model.forward_head(model.forward_features(images), pre_logits=True)
    mean = {n: torch.stack([part * state[n] for part, state in states]).sum(dim=0) for n in start}
    new = after_round(
        method_of(backbone), GlobalModel(tensors=start), GlobalModel(tensors=mean), 1, 5
    )
    labels = torch.cat([own.labels for own in shards])
    weight, bias = discriminant(*statistics_of(features, labels), LDA().shrinkage)
    assert torch.allclose(new.tensors["head.weight"], weight, rtol=1e-7)
    assert torch.allclose(new.tensors["head.bias"], bias, rtol=1e-7)


def test_round_1_trains_nothing_and_later_rounds_measure_nothing(make_backbone: MakeBackbone):
    backbone = make_backbone(method=METHOD)
    start = methods.export_state(backbone.model)
    after = measured(backbone, shard(8, 0))
    assert {n for n in start if not torch.equal(start[n], after[n])} == set(STATISTICS)
    later = train(
        backbone,
        after,
        shard(8, 1),
        config=TrainingConfig(batch_size=4),
        task=LocalTask(learning_rate=0.1, frozen=frozenset(STATISTICS)),
        generator=generator(0, "order"),
    ).state
    assert all(torch.equal(later[name], after[name]) for name in STATISTICS)
    assert not torch.equal(later["head.weight"], after["head.weight"])


def test_the_only_image_of_a_class_gives_its_features_away():
    """What the page on trust says of the statistics of one client."""
    draw = torch.Generator().manual_seed(2)
    features = torch.randn(7, 4, generator=draw, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 0, 2, 2, 0])
    _, means = statistics_of(features, labels, 3)
    assert torch.allclose(means[1, :-1] / means[1, -1], features[2], rtol=1e-12)
    assert torch.allclose(7 * means[:, -1], torch.tensor([4.0, 1.0, 2.0]).double())


def test_a_class_without_images_is_the_last_choice():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(60, 4, generator=draw, dtype=torch.float64)
    labels = torch.arange(60) % 2  # class 2 has no image
    weight, bias = discriminant(*statistics_of(features, labels, 3), 0.1)
    assert torch.equal(weight[2], torch.zeros(4).double())
    assert torch.isfinite(bias).all()
    logits = features @ weight.T + bias
    assert (logits.argmax(dim=1) != 2).all()


def test_more_channels_than_images_have_a_finite_head_even_without_shrinkage():
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(6, 20, generator=draw, dtype=torch.float64)
    weight, bias = discriminant(*statistics_of(features, torch.arange(6) % 3, 3), 0.0)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()


@pytest.mark.parametrize(
    ("frozen", "clipped", "refused"),
    [((), 3, True), ((), 0, False), ((), None, False), (LDA.measured, 3, False)],
)
def test_statistics_that_a_secure_sum_has_clipped_are_refused(
    make_backbone: MakeBackbone, frozen: tuple[str, ...], clipped: int | None, refused: bool
):
    method = method_of(make_backbone(method=METHOD))
    with pytest.raises(UserError, match=r"3 numbers") if refused else contextlib.nullcontext():
        check_not_clipped(method, frozen, clipped)


def test_statistics_that_are_no_means_are_refused(make_backbone: MakeBackbone):
    """A server optimiser takes a step of its own length, and noise also changes the statistics."""
    backbone = make_backbone(method=METHOD)
    start = GlobalModel(tensors=methods.export_state(backbone.model))
    far = {n: 0.5 * t for n, t in measured(backbone, shard(8, 0)).items()}
    with pytest.raises(UserError, match=r"the shares of the classes add up to 0\.5, not 1"):
        after_round(method_of(backbone), start, GlobalModel(tensors=far), 1, 5)
