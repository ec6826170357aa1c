"""A pair of an image and its ciphertext gives a key of many images, and no key of one image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_vitlora.attacks.key_search.from_pairs import key_from_pairs, matched
from fl_vitlora.attacks.key_search.map_from_pairs import map_from_pairs
from fl_vitlora.attacks.key_search.measures import share_of_blocks, share_of_mask
from fl_vitlora.attacks.key_search.three_steps import three_steps
from fl_vitlora.attacks.known_plaintext import KnownPlaintext
from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.attacks.views import InsiderView
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import client_party
from tests.attacks.made_up_views import (
    BLOCK,
    digits,
    encrypted,
    holder,
    named,
    public,
    settings,
    truth,
)

ATTACK, PLAIN = KnownPlaintext(images=4), digits(0, 40)
EXACT, ONE = "images decrypted bit for bit, all pairs", "images decrypted bit for bit, 1 pair"


def view_of(config: Config, shard: Shard, client: int = 0, known: int = 4) -> InsiderView:
    seen = encrypted(shard, holder(config), client)
    return InsiderView(
        public=public(config, PLAIN.images[:2]),
        client=client,
        images=seen.images,
        labels=seen.labels,
        known=shard.images[:known],
    )


def found(config: Config, shard: Shard = PLAIN, client: int = 0) -> dict[str, Figure]:
    view = view_of(config, shard, client)
    assert ATTACK.lacks(view) == ""
    secrets = truth(holder(config), [shard] * 3, PLAIN.images[:2])
    return named(ATTACK.score(ATTACK.guess(view), secrets))


def verdict(figures: dict[str, Figure]) -> str:
    return Outcome(attack="", adversary="", figures=list(figures.values())).verdict


@pytest.mark.parametrize("scope", ["shared", "client"])
def test_one_pair_decrypts_all_other_images_under_the_key(scope: str):
    figures = found(settings(encryption__scope=scope), client=2)
    assert verdict(figures) == "recovered"
    assert figures[EXACT].value == figures[ONE].value == 100


def test_a_key_for_every_image_is_of_no_use_for_other_images():
    figures = found(settings(encryption__scope="image"))
    assert verdict(figures) == "not"
    assert figures[EXACT].value == 0
    assert figures["values decrypted, all pairs"].value < 10


@pytest.mark.parametrize("steps", ["EtC", "PE", "LE", "ELE"])
def test_a_few_pairs_give_the_key_of_any_cipher_of_one_key(steps: str, images: Tensor):
    noise = torch.cat([images, images.flip(2), images.flip(3)])
    shard = Shard(images=noise, labels=torch.zeros(len(noise), dtype=torch.int64))
    figures = found(settings(encryption__steps=steps), shard)
    assert figures["values decrypted, all pairs"].value > 95


def test_blocks_that_differ_from_each_other_fall_too():
    figures = found(settings(encryption__scope="block"))
    assert figures["values decrypted, all pairs"].value > 90


def test_the_key_of_one_coloured_pair_is_the_whole_key(images: Tensor):
    keys = holder(settings())
    key = three_steps(keys, client_party(0))
    assert not isinstance(key, str)
    guess = key_from_pairs(images[:1], keys.encrypt(images[:1], client_party(0)), BLOCK)
    assert share_of_mask(guess, key) == share_of_blocks(guess, key) == 1
    assert torch.equal(guess["pixel_shuffling"], key["pixel_shuffling"])


def test_blocks_with_the_same_values_are_told_apart_by_guessing_one():
    """Every block has the same values, and every entry too: a Latin square in both directions."""
    square = (torch.arange(16)[:, None] + torch.arange(16)) % 16
    plain = (16 * square).to(torch.uint8).view(1, 16, 4, 4).transpose(1, 2).reshape(1, 1, 16, 16)
    draw = torch.Generator().manual_seed(3)
    rows, columns = (torch.randperm(16, generator=draw) for _ in range(2))
    blocks = plain.view(1, 4, 4, 4, 4).transpose(2, 3).reshape(16, 16)
    moved = blocks[rows][:, columns].view(1, 4, 4, 4, 4).transpose(2, 3).reshape(1, 1, 16, 16)
    key = key_from_pairs(plain, moved, 4)
    assert torch.equal(
        blocks[key["block_scrambling"]][:, key["pixel_shuffling"]], blocks[rows][:, columns]
    )
    assert not key["negative_positive"].any()


def test_pairs_of_different_keys_give_some_key_and_no_error(images: Tensor):
    other = images.flip(1)
    key = key_from_pairs(images, other, BLOCK)
    assert sorted(key["block_scrambling"].tolist()) == list(range(16))
    assert sorted(key["pixel_shuffling"].tolist()) == list(range(48))
    order = map_from_pairs(images, other).order
    assert sorted(order.tolist()) == list(range(images[0].numel()))


def test_what_has_no_partner_is_matched_with_what_is_left():
    assert matched(np.array([1, 2, 3]), np.array([3, 3, 9])).tolist() == [2, 0, 1]


def test_an_insider_with_too_few_pairs_is_told_so():
    assert "needs 4 known images, and 3" in ATTACK.lacks(view_of(settings(), PLAIN, known=3))
    plain = dataclasses.replace(
        view_of(settings(), PLAIN), public=public(settings(encryption__steps=[]), PLAIN.images)
    )
    assert ATTACK.lacks(plain) == "the images are not encrypted"
