"""Scrambled blocks of a smooth image are put in order; blocks that are changed inside are not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from fl_vitlora.attacks.block_jigsaw import BlockJigsaw
from fl_vitlora.attacks.key_search.block_fit import Costs, Habits, cost_of, squares
from fl_vitlora.attacks.key_search.jigsaw import apart, grown
from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.attacks.views import ThiefView, WorkerView
from fl_vitlora.data.shards import Shard
from tests.attacks.made_up_views import (
    digits,
    encrypted,
    holder,
    named,
    public,
    settings,
    truth,
)

ATTACK = BlockJigsaw(images=4)


def landscapes(count: int, seed: int) -> Shard:
    """Returns smooth random images, as sums of a few waves of random colours."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:16, 0:16] / 16
    waves = [
        sum(
            draw.normal(size=(3, 1, 1)) * np.sin(2 * np.pi * (a * x + b * y) + draw.uniform(0, 6))
            for a, b in draw.uniform(-1.2, 1.2, size=(4, 2))
        )
        for _ in range(count)
    ]
    low, high = np.min(waves), np.max(waves)
    images = torch.from_numpy((np.stack(waves) - low) / (high - low) * 255).round().byte()
    return Shard(images=images, labels=torch.zeros(count, dtype=torch.int64))


def view_of(plain: Shard, known: Shard, **given: Any) -> WorkerView:
    config = settings(**{"encryption__scope": "image", **given})
    seen = encrypted(plain, holder(config), 0)
    return WorkerView(
        public=public(config, known.images), client=0, images=seen.images, labels=seen.labels
    )


def found(plain: Shard, known: Shard, **given: Any) -> tuple[dict[str, Figure], str]:
    view = view_of(plain, known, **given)
    assert ATTACK.lacks(view) == ""
    secrets = truth(holder(view.public.settings), [plain], known.images[:2])
    figures = ATTACK.score(ATTACK.guess(view), secrets)
    return named(figures), Outcome(attack="", adversary="", figures=figures).verdict


def test_block_scrambling_alone_falls_though_every_image_has_a_key_of_its_own():
    figures, verdict = found(
        landscapes(4, 1), landscapes(40, 2), encryption__steps=["block_scrambling"]
    )
    assert figures["blocks put in their place"].value > 60
    assert figures["neighbours put side by side"].value > 60
    assert verdict in ("recovered", "partly")


def test_shuffled_pixels_leave_no_edges_that_continue_each_other():
    figures, verdict = found(
        landscapes(4, 1),
        landscapes(40, 2),
        encryption__steps=["block_scrambling", "pixel_shuffling", "negative_positive"],
    )
    assert verdict == "not"
    floor = figures["blocks put in their place"].floor
    assert floor is not None
    assert figures["blocks put in their place"].value < floor + 25


def test_the_blocks_of_noise_stay_where_they_are_by_chance():
    noise = torch.randint(0, 256, (44, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    shard = Shard(images=noise.byte(), labels=torch.zeros(44, dtype=torch.int64))
    figures, verdict = found(
        shard.take(torch.arange(4)), shard, encryption__steps=["block_scrambling"]
    )
    assert verdict == "not"
    assert figures["neighbours put side by side"].value < 25


def test_a_grown_order_has_every_block_once_and_places_apart_are_no_neighbours():
    plain = landscapes(30, 3).images
    habits = Habits.of(plain, 4)
    costs = Costs.of(squares(plain[:1], 4)[0], habits)
    order = grown(5, costs, habits)
    assert sorted(order.tolist()) == list(range(16))
    assert cost_of(np.arange(16), costs, habits) < cost_of(np.arange(16)[::-1], costs, habits)
    chosen = apart(4, 4, np.random.default_rng(0)).tolist()
    assert len(chosen) > 2
    assert not any(abs(a // 4 - b // 4) + abs(a % 4 - b % 4) == 1 for a in chosen for b in chosen)


def test_what_is_no_puzzle_is_refused_with_the_reason():
    plain, known = digits(0, 4), digits(10, 40)
    view = view_of(plain, known)
    assert ATTACK.lacks(view) == ""
    assert "not scrambled" in ATTACK.lacks(view_of(plain, known, encryption__steps="PE"))
    assert "20 plain images of the same kind, and 4" in ATTACK.lacks(view_of(plain, plain))
    cipher = dataclasses.replace(view.public.cipher, block_size=1)
    many = dataclasses.replace(view, public=dataclasses.replace(view.public, cipher=cipher))
    assert "4 to 200 blocks" in ATTACK.lacks(many)
    thief = ThiefView(public=view.public, client=0, images=None, labels=None, sealed="no")
    assert ATTACK.lacks(thief) == "no"
