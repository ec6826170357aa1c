"""A cipher with few keys falls to trying all of them, even if every image has its own key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fl_vitlora.attacks.exhaustive_key import ExhaustiveKey
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.views import WorkerView
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.all_keys import LISTS, all_keys, orders
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.steps import STEPS
from tests.attacks.made_up_views import digits, encrypted, holder, public, settings, truth

KNOWN = digits(0, 500).images
FEW_MOVED: dict[str, Any] = {
    "encryption__steps": ["block_scrambling"],
    "encryption__fixed_blocks": 13,
}


def keys_of(config: Config) -> KeyHolder:
    keys = holder(config)
    return replace(keys, cipher=replace(keys.cipher, fixed_blocks=config.encryption.fixed_blocks))


def view_of(config: Config, shard: Shard) -> WorkerView:
    keys = keys_of(config)
    seen = keys.encrypt(shard.images, client_party(0))
    everyone = replace(public(config, KNOWN), cipher=keys.cipher)
    return WorkerView(public=everyone, client=0, images=seen, labels=None)


def outcome(config: Config, shard: Shard) -> Outcome:
    view, attack = view_of(config, shard), ExhaustiveKey(images=8)
    assert attack.lacks(view) == ""
    figures = attack.score(attack.guess(view), truth(keys_of(config), [shard], KNOWN[:2]))
    return Outcome(attack="", adversary="", figures=figures)


def test_scrambling_with_many_fixed_blocks_falls():
    found = outcome(settings(**FEW_MOVED), digits(600, 620))
    assert found.figures[0].value == 100
    assert found.verdict == "recovered"
    assert 1000 < found.figures[1].value <= 16 * 15 * 14


def test_a_key_for_every_image_does_not_help_where_keys_are_few():
    found = outcome(settings(**FEW_MOVED, encryption__scope="image"), digits(600, 608))
    assert found.figures[0].value > 60


def test_images_unlike_those_that_are_known_are_not_recognised():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 1, 16, 16), generator=draw, dtype=torch.uint8)
    noise = Shard(images=pixels.repeat(1, 3, 1, 1), labels=torch.arange(8))
    found = outcome(settings(**FEW_MOVED, encryption__scope="image"), noise)
    assert found.figures[0].value < 30
    assert found.verdict != "recovered"


def test_a_large_key_space_is_refused_with_its_size():
    view = view_of(settings(), digits(600, 602))
    assert ExhaustiveKey().lacks(view) == "the cipher has 2^295 keys, and at most 2^16 are tried"
    other = replace(
        view.public.cipher, steps=("pixel_colour_shuffling",), image_shape=(3, 2, 2), block_size=2
    )
    few = replace(view, public=replace(view.public, cipher=other))
    assert "pixel_colour_shuffling cannot be listed" in ExhaustiveKey().lacks(few)


@pytest.mark.parametrize("step", sorted(LISTS))
def test_the_list_of_keys_has_each_key_that_can_be_drawn(step: str):
    cipher = Cipher(steps=(step,), block_size=2, image_shape=(1, 4, 2))
    if step in ("colour_shuffling", "negative_positive"):
        cipher = replace(cipher, image_shape=(3, 2, 1), block_size=1)
    listed = {tuple(key[step].flatten().tolist()) for key in all_keys(cipher)}
    drawn = {tuple(cipher.key(bytes(32), f"{n}")[step].flatten().tolist()) for n in range(300)}
    assert drawn <= listed
    assert len(listed) == round(2 ** STEPS[step].key_space_bits(cipher.geometry))


def test_orders_keep_as_many_places_as_are_fixed():
    listed = [order.tolist() for order in orders(5, fixed=3)]
    assert len(listed) == 1 + 10  # the identity, and ten exchanges of two
    assert all(sum(a == b for a, b in enumerate(order)) >= 3 for order in listed)


def test_a_view_of_the_run_itself_is_decrypted_to_its_plain_images():
    """The attack decrypts by the cipher of the run, whatever its other settings are."""
    config = settings(encryption__steps=["block_negative_positive"])
    shard = digits(600, 603)
    seen = encrypted(shard, holder(config), 0)
    view = WorkerView(public=public(config, KNOWN), client=0, images=seen.images, labels=None)
    guess = ExhaustiveKey(images=2).guess(view)
    assert guess.keys == 2**16
    assert torch.equal(guess.images, shard.images[:2])
