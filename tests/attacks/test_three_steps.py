"""A key of steps in any order, written as a key of the three steps, decrypts the same images."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from fl_vitlora.attacks.key_search.from_columns import key_from_columns
from fl_vitlora.attacks.key_search.three_steps import HALVED, VARIED, three_steps
from fl_vitlora.attacks.second_order import THREE_STEPS
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import KeyHolder, Scope
from tests.attacks.made_up_views import READER

ORDERS = [order for n in range(4) for order in itertools.permutations(THREE_STEPS, n)]


def holder(steps: tuple[str, ...], scope: Scope = "shared") -> KeyHolder:
    cipher = Cipher(steps=steps, block_size=4, image_shape=(3, 16, 16), per_block=scope == "block")
    return KeyHolder(cipher=cipher, secret=bytes(range(32)), scope=scope)


@pytest.mark.parametrize("steps", ORDERS, ids=",".join)
def test_the_three_steps_decrypt_what_any_order_of_steps_has_encrypted(
    steps: tuple[str, ...], images: Tensor
):
    keys = holder(steps)
    key = three_steps(keys, "client 0")
    assert not isinstance(key, str)
    decrypted = holder(THREE_STEPS).cipher.decrypt(keys.encrypt(images, "client 0"), key)
    assert torch.equal(decrypted, images)


@pytest.mark.parametrize("steps", ORDERS, ids=",".join)
def test_the_columns_of_an_adapted_model_give_the_same_key(steps: tuple[str, ...]):
    keys = holder(steps)
    key = three_steps(keys, "client 0")
    assert not isinstance(key, str)
    found = key_from_columns(keys.adapt(READER, "client 0"), READER)
    assert all(torch.equal(found[step], key[step]) for step in THREE_STEPS)


@pytest.mark.parametrize(
    ("steps", "scope", "reason"),
    [
        (THREE_STEPS, "image", "every image has its own key"),
        (THREE_STEPS, "block", VARIED),
        (("rotation_inversion",), "shared", VARIED),
        (("nibble_shuffling",), "shared", HALVED),
    ],
)
def test_other_keys_are_not_written_so_and_the_reason_is_told(
    steps: tuple[str, ...], scope: Scope, reason: str
):
    assert three_steps(holder(steps, scope), "client 0") == reason
