"""From how many ciphertexts a key falls: told where it was measured, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fl_vitlora.config import SCHEMES
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.withstands import NOT_MEASURED, falls_to_ciphertexts

DEFAULT = Cipher(steps=SCHEMES["ViT-blockwise"], block_size=4, image_shape=(3, 16, 16))


@pytest.mark.parametrize("scope", ["shared", "client"])
def test_a_key_of_many_digits_falls_to_ten_ciphertexts(scope: str):
    assert falls_to_ciphertexts(DEFAULT, scope, "digits") == 10


@pytest.mark.parametrize("step", DEFAULT.steps)
def test_a_cipher_of_fewer_steps_falls_as_easily(step: str):
    assert falls_to_ciphertexts(replace(DEFAULT, steps=(step,)), "shared", "digits") == 10


@pytest.mark.parametrize(
    ("cipher", "scope", "data"),
    [
        (DEFAULT, "image", "digits"),
        (DEFAULT, "block", "digits"),
        (DEFAULT, "shared", "cifar10"),
        (replace(DEFAULT, steps=SCHEMES["EtC"]), "shared", "digits"),
        (replace(DEFAULT, steps=SCHEMES["LE"]), "shared", "digits"),
        (replace(DEFAULT, image_shape=(3, 32, 32)), "shared", "digits"),
        (replace(DEFAULT, block_size=8), "shared", "digits"),
    ],
)
def test_what_was_not_measured_is_said_to_be_so(cipher: Cipher, scope: str, data: str):
    assert falls_to_ciphertexts(cipher, scope, data) == NOT_MEASURED


def test_plain_images_have_no_key():
    assert falls_to_ciphertexts(replace(DEFAULT, steps=()), "shared", "digits") is None
