"""One step of descent on few images spans their patches; on many it spans everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.span import PatchSpan, distinct, row_space
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.data.shards import Shard
from fl_vitlora.state import mean
from fl_vitlora.strategy import SEVERAL
from tests.attacks.made_up_views import (
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
ADAMW: dict[str, Any] = {"training__learning_rate": 0.02}
TOLD = "patches told to be the client's or not"


def colours(images: int, seed: int) -> Shard:
    """Images of random colours: no two patches are alike, and no entry follows from others."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 16, 16), generator=draw, dtype=torch.uint8)
    return Shard(images=pixels, labels=torch.arange(images) % 10)


def outcome(images: int, **given: Any) -> Outcome:
    config = settings(**given)
    backbone, reader = model_of(config)
    keys, plain, others = holder(config), [colours(images, 0), colours(images, 1)], colours(8, 2)
    shards = {client: encrypted(shard, keys, client) for client, shard in enumerate(plain)}
    sight = trained_round(config, backbone, start_of(backbone, head=True), shards)
    view = ServerView(public=public(config, others.images, reader), rounds=[sight])
    assert PatchSpan().lacks(view) == ""
    figures = PatchSpan().score(PatchSpan().guess(view), truth(keys, plain, others.images))
    return Outcome(attack="", adversary="", figures=figures)


@pytest.mark.parametrize("images", [1, 2])
def test_a_step_on_few_images_tells_their_patches_from_all_others(images: int):
    found = outcome(images, **DESCENT)
    figures = named(found.figures)
    assert figures[TOLD].value == 100
    assert figures["rank of an update"].value == 16 * images
    assert figures["rank of all patches of the kind"].value == 48
    assert found.verdict == "recovered"


@pytest.mark.parametrize(("images", "given"), [(6, DESCENT), (1, ADAMW)])
def test_many_images_or_steps_that_scale_each_entry_span_everything(
    images: int, given: dict[str, Any]
):
    found = outcome(images, **given)
    figures = named(found.figures)
    assert figures["rank of an update"].value == 48
    assert figures[TOLD].value == figures[TOLD].floor
    assert found.verdict == "not"


def test_what_rounding_adds_to_an_update_does_not_count():
    draw = torch.Generator().manual_seed(0)
    exact = torch.randn(96, 5, generator=draw) @ torch.randn(5, 48, generator=draw)
    noise = torch.randn(96, 48, generator=draw)
    assert row_space(exact + 1e-6 * noise).shape == (48, 5)
    assert row_space(exact + 0.1 * noise).shape == (48, 48)
    assert row_space(torch.zeros(96, 48)).shape == (48, 0)


def test_patches_of_other_images_leave_out_those_that_are_known():
    patches = distinct(colours(2, 0).images, 4)
    assert len(patches) == 32
    assert len(distinct(colours(2, 0).images, 4, without=patches)) == 0
    assert len(distinct(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), 4)) == 1


@pytest.mark.parametrize(("images", "verdict"), [(1, "recovered"), (6, "not")])
def test_a_sum_spans_the_patches_of_all_its_clients(images: int, verdict: str):
    config = settings(**DESCENT)
    backbone, reader = model_of(config)
    keys, plain, others = holder(config), [colours(images, 0), colours(images, 1)], colours(8, 2)
    shards = {client: encrypted(shard, keys, client) for client, shard in enumerate(plain)}
    sight = trained_round(config, backbone, start_of(backbone, head=True), shards)
    delta = mean([update.delta for update in sight.updates], [1, 1])
    total = replace(sight.updates[0], client=SEVERAL, members=2, delta=delta)
    view = ServerView(
        public=public(config, others.images, reader), rounds=[replace(sight, updates=[total])]
    )
    assert PatchSpan().lacks(view) == ""
    guess = PatchSpan().guess(view)
    assert list(guess.bases) == [SEVERAL]
    figures = PatchSpan().score(guess, truth(keys, plain, others.images))
    assert named(figures)["rank of an update"].value == min(48, 32 * images)
    assert Outcome(attack="", adversary="", figures=figures).verdict == verdict
