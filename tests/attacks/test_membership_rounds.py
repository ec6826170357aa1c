"""The single updates of all rounds tell on which images a client has trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fl_vitlora.attacks.membership_rounds import MembershipRounds, evidence, losses_by
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import InformedServerView
from fl_vitlora.data.shards import Shard
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import normalize
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

CLIENTS, OWN, ROUNDS = 5, 20, 2
AREA = "area under the curve"


def joined(shards: Sequence[Shard]) -> Shard:
    return Shard(
        images=torch.cat([shard.images for shard in shards]),
        labels=torch.cat([shard.labels for shard in shards]),
    )


@pytest.fixture(scope="module")
def overfitted() -> tuple[InformedServerView, Truth]:
    """Clients train for many epochs on a few images; candidates are paired by class."""
    config = settings(clients=CLIENTS, rounds=ROUNDS, training__epochs=30)
    backbone, reader = model_of(config)
    keys, pool = holder(config), digits(0, 600)
    by_class = [(pool.labels == c).nonzero().flatten() for c in range(10)]
    chosen = torch.stack([places[:20] for places in by_class], dim=1)  # (20, 10), balanced rows
    ours = [pool.take(chosen[2 * c : 2 * c + 2].flatten()) for c in range(CLIENTS)]
    theirs = [pool.take(chosen[10 + 2 * c : 12 + 2 * c].flatten()) for c in range(CLIENTS)]
    shards = [encrypted(shard, keys, client) for client, shard in enumerate(ours)]
    model, rounds = start_of(backbone, head=False), []
    for number in range(1, ROUNDS + 1):
        sight = trained_round(config, backbone, model, dict(enumerate(shards)), number)
        rounds.append(sight)
        model = averaged(model, sight.updates)
    candidates = joined([*shards, *(encrypted(s, keys, c) for c, s in enumerate(theirs))])
    view = InformedServerView(
        public=public(config, pool.images[:10], reader),
        reader=reader,
        rounds=rounds,
        model=copy.deepcopy(backbone.model),
        images=candidates.images,
        labels=candidates.labels,
        owners=torch.arange(CLIENTS).repeat_interleave(OWN).repeat(2),
    )
    members = torch.arange(2 * CLIENTS * OWN) < CLIENTS * OWN
    return view, Truth(members=lambda: members)


def figures(view: InformedServerView, truth: Truth) -> dict[str, Figure]:
    attack = MembershipRounds()
    assert attack.lacks(view) == ""
    return named(attack.score(attack.guess(view), truth))


def test_images_that_were_learnt_by_heart_are_told(overfitted: tuple[InformedServerView, Truth]):
    found = figures(*overfitted)
    assert found[AREA].value > 75
    assert found["true positives at 1 % false ones"].value > 4


def test_of_candidates_that_nobody_trained_on_nothing_is_told(
    overfitted: tuple[InformedServerView, Truth],
):
    view, _ = overfitted
    strangers = digits(800, 1000)
    keys = holder(view.public.settings)
    unknown = replace(view, images=encrypted(strangers, keys, 0).images, labels=strangers.labels)
    members = torch.arange(len(strangers)) % 2 == 0
    assert abs(figures(unknown, Truth(members=lambda: members))[AREA].value - 50) < 12


def test_another_client_is_not_taken_for_the_owner(overfitted: tuple[InformedServerView, Truth]):
    view, truth = overfitted
    wrong = replace(view, owners=(view.owners + 1) % CLIENTS)
    assert figures(wrong, truth)[AREA].value < 50


def test_the_losses_are_those_of_the_model_itself(overfitted: tuple[InformedServerView, Truth]):
    view, _ = overfitted
    assert view.model is not None
    few, labels = view.images[:70], view.labels[:70]
    losses = losses_by(view.model, few, labels, lambda: None)(view.rounds[1].model)
    model = copy.deepcopy(view.model).eval()
    methods.load_state(model, view.rounds[1].model)
    with torch.no_grad():
        logits = model(normalize(few)).double()
    slow = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(losses, slow, atol=1e-5)


def test_evidence_is_large_where_the_owner_differs_from_the_others():
    draw = torch.Generator().manual_seed(0)
    measure = torch.randn(9, 4, generator=draw)
    own = torch.zeros(9, 4, dtype=torch.bool)
    own[0, :2] = own[3, 2] = True  # nobody owns the last candidate
    measure[0, 0], measure[0, 1] = 30, -30
    found = evidence(measure, own)
    assert found[0] > 50
    assert found[1] < 1e-6
    assert found[3] == 0
    others = [measure[~own[:, c], c].double() for c in range(4)]
    pooled = sum(o.var(correction=0) for o in others) / 4
    spread = ((others[2].var(correction=0) + pooled) / 2).sqrt()
    z = (measure[3, 2].double() - others[2].mean()) / spread
    assert torch.isclose(found[2], -torch.log(0.5 * torch.erfc(z / 2**0.5)))


def test_what_the_server_lacks_is_told(overfitted: tuple[InformedServerView, Truth]):
    view, _ = overfitted
    sight = view.rounds[0]
    summed = Sight(round=1, model=sight.model, updates=[replace(sight.updates[0], client=SEVERAL)])
    lacks = MembershipRounds().lacks
    assert "sum of all updates" in lacks(replace(view, rounds=[summed]))
    assert "--record-updates" in lacks(replace(view, rounds=()))
    assert "needs 200 candidates" in lacks(replace(view, labels=view.labels[:9]))
    assert "without the key" in lacks(replace(view, model=None))
    three = replace(sight, updates=sight.updates[:3])
    assert "updates of 4 clients" in lacks(replace(view, rounds=[three]))
    thin = {name: tensor[:1] for name, tensor in sight.model.items()}
    odd = [replace(update, delta=thin) for update in sight.updates]
    assert "different ranks" in lacks(replace(view, rounds=[replace(sight, updates=odd)]))
