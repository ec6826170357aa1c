"""Updates of a patch embedding are correlated like ciphertext, and tell mask and order."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor

from fl_vitlora.attacks.key_correlations import KeyCorrelations
from fl_vitlora.attacks.key_search.prior import signed_blocks
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.views import OutsiderView, ServerView
from fl_vitlora.config import Config
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.federation.observer import Sight
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.strategy import SEVERAL, Update
from tests.attacks.made_up_views import BLOCK, READER, digits, holder, public, settings, truth

PLAIN = [digits(100 * client, 100 * client + 100) for client in range(3)]
KNOWN = digits(300, 310).images
OWN_KEYS = settings(encryption__scope="client")


def gradient(ciphertext: Tensor, number: int) -> Tensor:
    """Makes a change of the patch embedding, Σ δᵢ·xᵢᵀ with random δ, of images that are seen."""
    patches = torch.from_numpy(signed_blocks(ciphertext, BLOCK)).flatten(0, 1).float()
    errors = torch.randn(len(patches), 96, generator=torch.Generator().manual_seed(number))
    return (errors.T @ patches).reshape(96, 3, BLOCK, BLOCK)


def view_of(config: Config, changes: Sequence[Tensor], *, summed: bool = False) -> ServerView:
    clients = [SEVERAL] if summed else range(len(changes))
    sent = [torch.stack(list(changes)).mean(dim=0)] if summed else changes
    updates = [
        Update(client=client, samples=100, loss=1.0, delta={WEIGHT: change})
        for client, change in zip(clients, sent, strict=True)
    ]
    sight = Sight(round=1, model={}, updates=updates)
    return ServerView(public=public(config, KNOWN), reader=None, rounds=[sight])


def changes_of(config: Config) -> list[Tensor]:
    keys = holder(config)
    return [
        gradient(keys.encrypt(shard.images, client_party(client)), client)
        for client, shard in enumerate(PLAIN)
    ]


def outcome(config: Config, view: ServerView | OutsiderView) -> Outcome:
    attack = KeyCorrelations()
    assert attack.lacks(view) == ""
    figures = attack.score(attack.guess(view), truth(holder(config), PLAIN, KNOWN))
    return Outcome(attack="", adversary="", figures=figures)


def test_a_common_key_is_found_in_single_updates_and_in_their_sum():
    for summed in (False, True):
        found = outcome(settings(), view_of(settings(), changes_of(settings()), summed=summed))
        assert [figure.value for figure in found.figures] == [100, 100]
        assert found.verdict == "recovered"


def test_the_key_of_each_client_is_found_in_what_it_sends_but_not_in_the_sum():
    single = outcome(OWN_KEYS, view_of(OWN_KEYS, changes_of(OWN_KEYS)))
    summed = outcome(OWN_KEYS, view_of(OWN_KEYS, changes_of(OWN_KEYS), summed=True))
    assert single.figures[0].value == 100
    assert single.figures[1].value > 60
    assert summed.figures[1].value < 40


def test_an_outsider_finds_it_in_the_change_since_the_public_model():
    change = torch.stack(changes_of(settings())).mean(dim=0).flatten(1)
    final = READER.with_weight(READER.weight + 1e-3 * change)
    found = outcome(settings(), OutsiderView(public=public(settings(), KNOWN), reader=final))
    assert found.verdict == "recovered"


def test_noise_gives_what_chance_gives():
    gains = []
    for number in range(4):
        draw = torch.Generator().manual_seed(number)
        noise = torch.randn(96, 48, generator=draw)
        view = OutsiderView(
            public=public(settings(), KNOWN), reader=READER.with_weight(READER.weight + noise)
        )
        gains += [figure.gain for figure in outcome(settings(), view).figures]
    assert mean(gain for gain in gains if gain is not None) < 0.1


def test_updates_without_a_patch_embedding_are_refused():
    attack = KeyCorrelations()
    view = view_of(settings(), [torch.zeros(96, 3, 4, 4)])
    assert "no client sends" in attack.lacks(view)
    same = OutsiderView(public=public(settings(), KNOWN), reader=READER)
    assert "public patch embedding" in attack.lacks(same)
    adapted = settings(encryption__adapt=True)
    assert "adapted" in attack.lacks(OutsiderView(public=public(adapted, KNOWN), reader=READER))
