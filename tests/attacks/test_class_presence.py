"""The updates of the head in all rounds tell which classes a client has."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fl_vitlora.attacks.class_presence import ABSENT, AREA, BIAS, ClassPresence, standardised
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.data.shards import Shard
from fl_vitlora.strategy import SEVERAL, averaged
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

CLIENTS, ROUNDS = 6, 2


def skewed() -> list[Shard]:
    """Six clients with classes of a Dirichlet distribution."""
    pool, draw = digits(0, 800), torch.Generator().manual_seed(3)
    shares = torch._standard_gamma(torch.full((CLIENTS, 10), 0.3), generator=draw)
    counts = (24 * shares / shares.sum(dim=1, keepdim=True)).round().long()
    places = {c: iter((pool.labels == c).nonzero().flatten().tolist()) for c in range(10)}
    return [
        pool.take(torch.tensor([next(places[c]) for c in range(10) for _ in range(int(row[c]))]))
        for row in counts
    ]


@pytest.fixture(scope="module")
def observed() -> tuple[ServerView, Truth]:
    config = settings(clients=CLIENTS, rounds=ROUNDS)
    backbone, reader = model_of(config)
    keys, plain = holder(config), skewed()
    shards = {client: encrypted(shard, keys, client) for client, shard in enumerate(plain)}
    model, rounds = start_of(backbone, head=False), []
    for number in range(1, ROUNDS + 1):
        rounds.append(trained_round(config, backbone, model, shards, number))
        model = averaged(model, rounds[-1].updates)
    others = digits(900, 910).images
    view = ServerView(public=public(config, others, reader), reader=reader, rounds=rounds)
    return view, truth(keys, plain, others)


def test_with_skewed_labels_the_classes_of_a_client_are_told(observed: tuple[ServerView, Truth]):
    view, true = observed
    attack = ClassPresence()
    assert attack.lacks(view) == ""
    figures = named(attack.score(attack.guess(view), true))
    assert figures[ABSENT].value > 15
    assert figures[AREA].value > 85


def test_updates_that_are_noise_tell_nothing(observed: tuple[ServerView, Truth]):
    view, true = observed
    draw = torch.Generator().manual_seed(0)
    rounds = [
        replace(
            sight,
            updates=[
                replace(
                    u, delta={n: torch.randn(t.shape, generator=draw) for n, t in u.delta.items()}
                )
                for u in sight.updates
            ],
        )
        for sight in view.rounds
    ]
    attack = ClassPresence()
    figures = named(attack.score(attack.guess(replace(view, rounds=rounds)), true))
    assert abs(figures[AREA].value - 50) < 22  # 60 pairs: a standard deviation of 8


def test_where_all_have_all_classes_there_is_nothing_to_tell():
    scores = {client: torch.randn(10) for client in range(2)}
    everything = Truth(labels=dict.fromkeys(scores, torch.arange(10)))
    figures = named(ClassPresence().score(scores, everything))
    assert (figures[AREA].value, figures[AREA].gain, figures[ABSENT].value) == (50, 0, 0)


def test_sums_and_updates_without_a_head_are_refused(observed: tuple[ServerView, Truth]):
    view, _ = observed
    sight = view.rounds[0]
    lacks = ClassPresence().lacks
    summed = [replace(sight.updates[0], client=SEVERAL)]
    assert "sum of all updates" in lacks(replace(view, rounds=[replace(sight, updates=summed)]))
    assert "--record-updates" in lacks(replace(view, rounds=()))
    alone = replace(sight, updates=sight.updates[:1])
    assert f"2 clients that send {BIAS}" in lacks(replace(view, rounds=[alone]))


def test_equal_changes_are_no_evidence():
    assert not standardised(torch.ones(3, 4)).any()
