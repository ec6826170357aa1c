"""The head's update tells how many images of each class a client has."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_vitlora.attacks.label_counts import BIAS, SHARES, LabelCounts, overlap, whole_counts
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.data.shards import Shard
from fl_vitlora.federation.observer import Sight
from fl_vitlora.strategy import SEVERAL, Update
from tests.attacks.made_up_views import (
    digits,
    model_of,
    named,
    public,
    settings,
    start_of,
    trained_round,
    truth,
)
from tests.attacks.made_up_views import holder as holder_of

DESCENT: dict[str, Any] = {
    "training__optimizer": "sgd",
    "training__learning_rate": 0.1,
    "training__batch_size": 100,
}
RIGHT, EXACT = "images counted in their class", "clients counted exactly"


def skewed() -> list[Shard]:
    """Three clients, whose classes differ much: 4, 2 and 3 classes, of other shares each."""
    pool = digits(0, 600)
    chosen = [{0: 12, 3: 5, 7: 1, 8: 20}, {1: 30, 2: 3}, {4: 7, 5: 7, 9: 15}]
    return [
        pool.take(torch.cat([(pool.labels == c).nonzero()[:n, 0] for c, n in counts.items()]))
        for counts in chosen
    ]


def observed(**given: Any) -> tuple[ServerView, Truth]:
    """Trains for a round on plain images; returns what the server sees, and the truth."""
    config = settings(**{"encryption__steps": [], **given})
    backbone, reader = model_of(config)
    shards, others = skewed(), digits(600, 610).images
    sight = trained_round(config, backbone, start_of(backbone, head=False), dict(enumerate(shards)))
    view = ServerView(public=public(config, others, reader), reader=reader, rounds=[sight])
    return view, truth(holder_of(config), shards, others)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_step_of_descent_from_a_head_of_zeros_tells_the_counts_exactly(smoothing: float):
    view, true = observed(**DESCENT, training__label_smoothing=smoothing)
    figures = named(LabelCounts().score(LabelCounts().guess(view), true))
    assert figures[EXACT].value == figures[RIGHT].value == 100


def test_many_steps_of_adamw_tell_the_counts_roughly():
    view, true = observed(training__learning_rate=0.02)
    figure = named(LabelCounts().score(LabelCounts().guess(view), true))[RIGHT]
    assert figure.floor is not None
    assert figure.value > 2 * figure.floor
    assert figure.value > 60


def sight_of(delta: dict[str, Tensor], client: int = 0, samples: int = 38) -> Sight:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in delta.items()}
    update = Update(client=client, samples=samples, loss=1.0, delta=delta, steps=5)
    return Sight(round=1, model=zeros, updates=[update])


def view_of(sight: Sight) -> ServerView:
    return ServerView(public=public(settings(), digits(0, 10).images), rounds=[sight])


def test_statistics_of_the_discriminant_analysis_tell_the_counts_exactly():
    shard = skewed()[0]
    counts = torch.bincount(shard.labels, minlength=10)
    statistics = torch.cat([torch.randn(10, 4), (counts / counts.sum()).unsqueeze(1)], dim=1)
    (found,) = LabelCounts().guess(view_of(sight_of({SHARES: statistics}))).values()
    assert torch.equal(found, counts)


def test_an_update_that_is_noise_tells_no_more_than_chance():
    shard = skewed()[0]
    counts = torch.bincount(shard.labels, minlength=10)
    shares = []
    for seed in range(30):
        noise = torch.randn(10, generator=torch.Generator().manual_seed(seed))
        (found,) = LabelCounts().guess(view_of(sight_of({BIAS: noise}))).values()
        shares.append(overlap(found, counts))
    uniform = overlap(whole_counts(torch.ones(10), 38), counts)
    assert mean(shares) < uniform + 0.05


def test_sums_and_updates_without_a_head_are_refused():
    view = view_of(sight_of({BIAS: torch.ones(10)}, client=SEVERAL))
    assert "sum of all updates" in LabelCounts().lacks(view)
    assert BIAS in LabelCounts().lacks(view_of(sight_of({"w": torch.ones(10)})))
    assert "--record-updates" in LabelCounts().lacks(replace(view, rounds=()))


def test_counts_are_whole_and_have_the_sum_that_is_known():
    for seed in range(20):
        shares = torch.randn(7, generator=torch.Generator().manual_seed(seed))
        counts = whole_counts(shares, 23)
        assert counts.sum() == 23
        assert (counts >= 0).all()
    assert whole_counts(torch.zeros(4), 6).tolist() == [2, 2, 1, 1]
