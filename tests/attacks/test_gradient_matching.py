"""The update of one image betrays the image; sums, and updates of many images, do not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fl_vitlora.attacks.clock import Clock, OutOfTimeError
from fl_vitlora.attacks.gradient_matching import PUBLISHED, SPAN, GradientMatching
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.federation.observer import Sight
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.state import mean
from fl_vitlora.strategy import SEVERAL, Update
from fl_vitlora.testing.attack import RULES, findings
from tests.attacks.made_up_views import (
    digits,
    encrypted,
    holder,
    model_of,
    named,
    public,
    settings,
    start_of,
    trained_round,
    truth,
)

DESCENT: dict[str, Any] = {"training__optimizer": "sgd", "training__learning_rate": 0.1}
SSIM, ERROR = "structural similarity (SSIM)", "mean error of a pixel (of 255)"
KNOWN = digits(600, 640)


def observed(images: int, *, head: bool = True, **given: Any) -> tuple[ServerView, Truth]:
    """Lets a client take a step on its images; returns what the server sees, and the truth."""
    config = settings(**{**DESCENT, "training__batch_size": 100, **given})
    backbone, reader = model_of(config)
    keys, plain = holder(config), digits(0, images)
    shards = {0: encrypted(plain, keys, 0)}
    sight = trained_round(config, backbone, start_of(backbone, head=head), shards)
    view = ServerView(
        public=public(config, KNOWN.images, reader), rounds=[sight], model=backbone.model
    )
    return view, truth(keys, [plain], KNOWN.images, KNOWN.labels)


def outcome(view: ServerView, true: Truth, **given: Any) -> Outcome:
    attack = GradientMatching(**given)
    assert attack.lacks(view) == ""
    figures = attack.score(attack.guess(view), true)
    return Outcome(attack="", adversary="", figures=figures)


@pytest.mark.slow
def test_one_step_of_descent_on_one_image_gives_the_image():
    found = outcome(*observed(1), published_steps=20)
    figures = named(found.figures)
    assert found.verdict == "recovered"
    assert figures[SSIM].value > 99
    assert figures[ERROR].value < 1
    assert figures[f"SSIM by {SPAN}"].value == figures[SSIM].value
    assert max(figures[f"SSIM by {way}"].value for way in PUBLISHED) < 95


def test_an_update_of_many_images_gives_none():
    found = outcome(*observed(40))
    assert found.verdict == "not"


def summed(images: int, clients: int) -> tuple[ServerView, Truth]:
    """Returns what the server sees of a secure sum of clients that take a step each."""
    config = settings(**DESCENT, training__batch_size=100, privacy__secure_aggregation=True)
    backbone, reader = model_of(config)
    keys, plain = holder(config), [digits(c * images, (c + 1) * images) for c in range(clients)]
    shards = {client: encrypted(shard, keys, client) for client, shard in enumerate(plain)}
    sight = trained_round(config, backbone, start_of(backbone, head=True), shards)
    delta = mean([u.delta for u in sight.updates], [u.samples for u in sight.updates])
    total = replace(
        sight.updates[0], client=SEVERAL, members=clients, samples=images * clients, delta=delta
    )
    view = ServerView(
        public=public(config, KNOWN.images, reader),
        rounds=[replace(sight, updates=[total])],
        model=backbone.model,
    )
    return view, truth(keys, plain, KNOWN.images, KNOWN.labels)


@pytest.mark.slow
def test_a_sum_of_two_clients_with_one_image_each_is_a_batch_of_two_images():
    view, true = summed(1, 2)
    found = named(outcome(view, true, published_steps=1).figures)
    assert found["images tried"].value == 2
    assert (found[SSIM].gain or 0) > 0.25


def test_a_sum_of_many_images_gives_none():
    assert outcome(*summed(20, 3)).verdict == "not"


def test_what_a_server_does_not_have_is_told():
    attack = GradientMatching()
    view, _ = observed(1)
    assert "no complete model" in attack.lacks(replace(view, model=None))
    assert "--record-updates" in attack.lacks(replace(view, rounds=()))
    assert "head is zero" in attack.lacks(observed(1, head=False)[0])
    (sight,) = view.rounds
    without = Update(client=0, samples=1, loss=1.0, delta={"head.bias": torch.ones(10)})
    silent = Sight(round=1, model=sight.model, updates=[without])
    assert "no client sends" in attack.lacks(replace(view, rounds=[silent]))
    smaller = replace(sight, model={**sight.model, WEIGHT: torch.zeros(8, 3, 4, 4)})
    assert "lower ranks" in attack.lacks(replace(view, rounds=[smaller]))


def test_the_search_ends_without_steps_always_at_the_same_place_and_says_what_it_tried():
    view, true = observed(2)
    one, other = (outcome(view, true, steps=3, published_steps=1) for _ in range(2))
    assert one.figures == other.figures
    figures = named(one.figures)
    assert figures["images tried"].value == 2
    assert figures[SSIM].floor is not None


@pytest.mark.parametrize("published", [0, 1], ids=["least squares", "published ways"])
def test_the_search_asks_the_clock_of_the_audit(published: int):
    view, _ = observed(1)
    with pytest.raises(OutOfTimeError):
        GradientMatching(published_steps=published).guess(replace(view, clock=Clock.of(0)))


@dataclass(frozen=True, kw_only=True)
class Hasty(GradientMatching):
    """The attack with short searches."""

    steps: int = 3
    published_steps: int = 1


@pytest.mark.slow
def test_the_attack_keeps_the_contract():
    found = findings(Hasty)
    assert [finding.problem for finding in found if finding.problem] == []
    untried = {rule.told for rule in RULES} - {finding.rule for finding in found}
    assert untried == {"uses no more encrypted images than it may"}  # it uses none
