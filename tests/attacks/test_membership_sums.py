"""The models and the sums of a run tell on which images clients have trained."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fl_vitlora.attacks.membership_sums import MembershipSums, within_class
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import InformedServerView
from fl_vitlora.data.shards import Shard
from fl_vitlora.federation.observer import Sight
from fl_vitlora.state import mean
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
)

CLIENTS, OWN, OTHERS, ROUNDS = 3, 10, 200, 2
AREA = "area under the curve"


def summed(sight: Sight) -> Sight:
    """Returns what the server sees of a round under secure aggregation."""
    delta = mean([u.delta for u in sight.updates], [u.samples for u in sight.updates])
    one = replace(sight.updates[0], client=SEVERAL, members=len(sight.updates), delta=delta)
    return replace(sight, updates=(one,))


@pytest.fixture(scope="module")
def overfitted() -> tuple[InformedServerView, Truth]:
    """Clients train for many epochs on one image of each class."""
    config = settings(
        clients=CLIENTS, rounds=ROUNDS, training__epochs=30, privacy__secure_aggregation=True
    )
    backbone, reader = model_of(config)
    keys, pool = holder(config), digits(0, 600)
    by_class = [(pool.labels == c).nonzero().flatten()[: CLIENTS + 20] for c in range(10)]
    chosen = torch.stack(by_class, dim=1)  # a row has one image of each class
    shards = {
        client: encrypted(pool.take(chosen[client]), keys, client) for client in range(CLIENTS)
    }
    model, rounds = start_of(backbone, head=False), []
    for number in range(1, ROUNDS + 1):
        sight = summed(trained_round(config, backbone, model, shards, number))
        rounds.append(sight)
        model = averaged(model, sight.updates)
    others = encrypted(pool.take(chosen[CLIENTS:].flatten()), keys, 0)
    view = InformedServerView(
        public=public(config, pool.images[:10], reader),
        reader=reader,
        rounds=rounds,
        model=copy.deepcopy(backbone.model),
        images=torch.cat([*(shard.images for shard in shards.values()), others.images]),
        labels=torch.cat([*(shard.labels for shard in shards.values()), others.labels]),
        owners=torch.arange(CLIENTS * OWN + OTHERS) % CLIENTS,
    )
    members = torch.arange(len(view.labels)) < CLIENTS * OWN
    return view, Truth(members=lambda: members)


def figures(view: InformedServerView, truth: Truth) -> dict[str, Figure]:
    attack = MembershipSums()
    assert attack.lacks(view) == ""
    return named(attack.score(attack.guess(view), truth))


def test_images_that_were_learnt_by_heart_are_told_from_sums(
    overfitted: tuple[InformedServerView, Truth],
):
    assert figures(*overfitted)[AREA].value > 70


def test_of_images_that_nobody_trained_on_nothing_is_told(
    overfitted: tuple[InformedServerView, Truth],
):
    view, _ = overfitted
    strangers: Shard = digits(800, 1040)
    seen = encrypted(strangers, holder(view.public.settings), 0)
    unknown = replace(view, images=seen.images, labels=seen.labels)
    members = torch.arange(len(strangers)) % 2 == 0
    assert abs(figures(unknown, Truth(members=lambda: members))[AREA].value - 50) < 12


def test_a_class_that_is_hard_for_the_model_is_not_taken_for_strangers():
    values, labels = torch.tensor([10.0, 12.0, 0.0, 2.0]), torch.tensor([0, 0, 1, 1])
    assert within_class(values, labels).tolist() == [-1, 1, -1, 1]
    assert within_class(torch.ones(3), torch.tensor([0, 0, 1])).tolist() == [0, 0, 0]


def test_what_the_server_lacks_is_named(overfitted: tuple[InformedServerView, Truth]):
    view, _ = overfitted
    attack = MembershipSums()
    assert "--record-updates" in attack.lacks(replace(view, rounds=()))
    assert "without the key" in attack.lacks(replace(view, model=None))
    assert "candidates" in attack.lacks(replace(view, labels=view.labels[:20]))
