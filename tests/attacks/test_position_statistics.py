"""The brightness at each place gives the places away, if one key serves many images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fl_vitlora.attacks.position_statistics import (
    SIMILARITY,
    VALUES,
    PositionStatistics,
    bin_counts,
)
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.views import WorkerView
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from tests.attacks.made_up_views import digits, encrypted, holder, public, settings, truth

KNOWN = digits(0, 700)


def outcome(config: Config, shard: Shard, known: Shard, images: int) -> Outcome:
    attack = PositionStatistics(images=images)
    seen = encrypted(shard, holder(config), 0)
    view = WorkerView(
        public=public(config, known.images), client=0, images=seen.images, labels=None
    )
    assert attack.lacks(view) == ""
    figures = attack.score(attack.guess(view), truth(holder(config), [shard], known.images[:200]))
    return Outcome(attack="", adversary="", figures=figures)


def gain(found: Outcome, name: str) -> float:
    (value,) = [figure.gain for figure in found.figures if figure.name == name]
    assert value is not None
    return value


def test_many_ciphertexts_show_digits_though_every_block_has_a_key_of_its_own():
    config = settings(encryption__scope="block")
    found = outcome(config, digits(700, 1300), KNOWN, 600)
    assert gain(found, SIMILARITY) > 0.25
    assert found.verdict == "partly"


def test_few_ciphertexts_do_not():
    config = settings(encryption__scope="block")
    assert outcome(config, digits(700, 740), KNOWN, 8).verdict == "not"


def test_places_of_the_same_brightness_cannot_be_told_apart():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (400, 3, 16, 16), generator=draw, dtype=torch.uint8)
    noise = Shard(images=pixels, labels=torch.arange(400) % 10)
    known = Shard(images=pixels.flip(0)[:200], labels=noise.labels[:200])
    found = outcome(settings(), noise.take(torch.arange(200)), known, 200)
    assert found.verdict == "not"
    assert abs(gain(found, VALUES)) < 0.05


def test_what_cannot_be_attacked_is_refused_with_the_reason():
    def reason(given: dict[str, Any], known: torch.Tensor = KNOWN.images) -> str:
        config = settings(**given)
        seen = encrypted(digits(700, 702), holder(config), 0)
        everyone = public(config, known)
        view = WorkerView(public=everyone, client=0, images=seen.images, labels=None)
        return PositionStatistics(images=8).lacks(view)

    assert reason({}) == ""
    assert "not encrypted" in reason({"encryption__steps": []})
    assert "its own key" in reason({"encryption__scope": "image"})
    assert "halves" in reason({"encryption__steps": "LE"})
    assert "100 plain images" in reason({}, KNOWN.images[:20])
    large = torch.zeros(120, 3, 48, 48, dtype=torch.uint8)
    config = settings()
    view = WorkerView(
        public=replace(public(config, KNOWN.images), images=large),
        client=0,
        images=KNOWN.images[:2],
        labels=None,
    )
    assert "at most 3,072 values" in PositionStatistics(images=8).lacks(view)


def test_a_level_and_its_inverse_fall_into_mirrored_bins():
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels.view(1, 1, 16, 16)
    assert torch.equal(bin_counts(images).flip(1), bin_counts(255 - images))
