"""The gradient that an update tells is the one that the server computes for the true images."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fl_vitlora.attacks.inversion.distances import cosine_distance, residuals
from fl_vitlora.attacks.inversion.observed import Observed, most_telling
from fl_vitlora.attacks.inversion.simulated import Gradient, simulated
from fl_vitlora.data.shards import Shard
from fl_vitlora.federation.observer import Sight
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.state import State
from tests.attacks.made_up_views import (
    digits,
    encrypted,
    holder,
    model_of,
    public,
    settings,
    start_of,
    trained_round,
)

DESCENT: dict[str, Any] = {
    "training__optimizer": "sgd",
    "training__learning_rate": 0.1,
    "training__batch_size": 100,
}


def both(shard: Shard, *, trained: bool = False, **given: Any) -> tuple[Observed, Gradient]:
    """Returns what an update tells, and the gradient of the true images with their labels."""
    config = settings(**{**DESCENT, **given})
    backbone, reader = model_of(config)
    seen = encrypted(shard, holder(config), 0)
    start = start_of(backbone, head=True)
    if trained:
        start = moved(start)
    sight = trained_round(config, backbone, start, {0: seen})
    known = public(config, digits(600, 602).images, reader)
    (found,) = most_telling([sight], known, {})
    model = simulated(backbone.model, sight.model, config.training.label_smoothing)
    return found, model.gradient(normalize(seen.images), seen.labels)


def moved(state: State) -> State:
    draw = torch.Generator().manual_seed(1)
    return {n: t + torch.randn(t.shape, generator=draw) / 50 for n, t in state.items()}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"training__label_smoothing": 0.2},
        {"training__weight_decay": 0.1, "trained": True},
        {"training__patch_embed_rate": 0.5, "training__head_rate": 3.0, "training__momentum": 0.9},
        {"encryption__steps": []},
    ],
    ids=str,
)
def test_a_step_of_plain_descent_tells_the_gradient(given: dict[str, Any]):
    found, true = both(digits(0, 3), **given)
    assert found.exact
    rest = residuals(true, found.gradient, exact=True).square().sum()
    assert float(rest) < 1e-4 * len(found.gradient)
    assert float(cosine_distance(true, found.gradient)) < 1e-4
    assert set(found.gradient) <= set(true)


def test_of_several_steps_and_of_adamw_only_the_direction_is_used():
    for given in ({"training__batch_size": 1}, {"training__optimizer": "adamw"}):
        found, true = both(digits(0, 2), **given)
        assert not found.exact
        assert 0 < float(cosine_distance(true, found.gradient)) < 1


def test_the_label_of_a_single_image_is_told():
    for position in range(5):
        shard = digits(position, position + 1)
        assert both(shard)[0].classes.tolist() == shard.labels.tolist()


def test_the_update_that_tells_most_is_that_of_the_fewest_images_and_steps():
    config = settings(**DESCENT)
    backbone, reader = model_of(config)
    known = public(config, digits(600, 602).images, reader)
    start = start_of(backbone, head=True)
    first = trained_round(config, backbone, start_of(backbone, head=False), {0: digits(0, 1)})
    second = trained_round(config, backbone, start, {0: digits(0, 1), 1: digits(0, 2)}, number=2)
    third = trained_round(config, backbone, moved(start), {0: digits(0, 1)}, number=2)
    found = most_telling([first, second, third], known, {})
    assert [one.client for one in found] == [0, 1]
    assert found[0].model is third.model  # the matrices B are not zero, so all tensors have one
    assert len(found[0].gradient) > len(found[1].gradient)


def test_a_first_step_from_a_head_of_zeros_tells_nothing_about_patches():
    config = settings(**DESCENT)
    backbone, reader = model_of(config)
    sight = trained_round(config, backbone, start_of(backbone, head=False), {0: digits(0, 1)})
    known = public(config, digits(600, 602).images, reader)
    assert most_telling([sight], known, {}) == []
    (update,) = sight.updates
    assert not update.delta[WEIGHT].any()
    assert update.delta["head.weight"].any()


def test_the_model_of_the_server_is_not_changed():
    config = settings(**DESCENT)
    backbone, _ = model_of(config)
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    sight = Sight(round=1, model=moved(start_of(backbone, head=True)), updates=())
    image = normalize(digits(0, 1).images)
    simulated(backbone.model, sight.model, 0.0).gradient(image, torch.tensor([1]))
    after = dict(backbone.model.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in before.items())
