"""A few ciphertexts under one key, and other plain images, give the key and all images."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.second_order import SecondOrder
from fl_vitlora.attacks.views import ThiefView, WorkerView
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import client_party
from tests.attacks.made_up_views import digits, encrypted, holder, public, settings, truth

KNOWN = digits(0, 700).images
ATTACK = SecondOrder(images=8)


def view_of(config: Config, shard: Shard, number: int) -> WorkerView:
    seen = encrypted(shard, holder(config, number), 0)
    return WorkerView(
        public=public(config, KNOWN), client=0, images=seen.images, labels=seen.labels
    )


def outcome(config: Config, shard: Shard, number: int) -> Outcome:
    view = view_of(config, shard, number)
    assert ATTACK.lacks(view) == ""
    figures = ATTACK.score(ATTACK.guess(view), truth(holder(config, number), [shard], KNOWN[:3]))
    return Outcome(attack="", adversary="", figures=figures)


def test_eight_ciphertexts_decrypt_all_images_of_a_client_bit_for_bit():
    found = [
        outcome(settings(), digits(700 + 40 * number, 740 + 40 * number), number)
        for number in range(3)
    ]
    assert sum(one.verdict == "recovered" for one in found) >= 2
    assert sum(one.figures[-1].value == 100 for one in found) >= 2


def test_a_cipher_of_other_steps_falls_to_the_same_attack():
    config = settings(encryption__steps=["negative_positive", "pixel_shuffling"])
    assert outcome(config, digits(700, 740), 0).figures[-1].value == 100


def test_images_unlike_those_that_are_known_keep_their_key():
    draw = torch.Generator().manual_seed(0)
    grey = torch.randint(0, 256, (12, 1, 16, 16), generator=draw, dtype=torch.uint8)
    noise = grey.repeat(1, 3, 1, 1)
    found = outcome(settings(), Shard(images=noise, labels=torch.zeros(12, dtype=torch.int64)), 0)
    assert found.verdict == "not"
    assert found.figures[-1].value == 0


def test_what_cannot_be_attacked_is_refused_with_the_reason():
    def reason(given: dict[str, Any], known: Tensor = KNOWN) -> str:
        config = settings(**given)
        view = view_of(config, digits(700, 708), 0)
        return ATTACK.lacks(replace(view, public=public(config, known)))

    assert "every image has its own key" in reason({"encryption__scope": "image"})
    assert "each block" in reason({"encryption__scope": "block"})
    assert "halves" in reason({"encryption__steps": "LE"})
    assert "plain images of the same kind" in reason({}, KNOWN[:20])
    assert "different values" in reason({}, torch.rand(200, 3, 32, 32).mul(255).byte())


def test_a_thief_of_sealed_shards_has_nothing_to_attack():
    view = view_of(settings(), digits(700, 708), 0)
    known = {f.name: getattr(view, f.name) for f in dataclasses.fields(view)}
    assert ATTACK.lacks(ThiefView(**known)) == ""
    sealed = {**known, "images": None, "labels": None, "sealed": "the shards are sealed"}
    assert ATTACK.lacks(ThiefView(**sealed)) == "the shards are sealed"


def test_the_party_whose_key_is_guessed_is_the_one_whose_images_are_seen():
    guess = ATTACK.guess(view_of(settings(), digits(700, 708), 0))
    assert client_party(next(iter(guess.keys))) == "client 0"
