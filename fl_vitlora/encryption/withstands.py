"""A table of measured attacks: how many ciphertexts an attack needed to find the key.

The number of possible keys (`Cipher.key_space_bits`) does not say how many ciphertexts an attack
needs. An attacker does not try keys, but compares the statistics of ciphertext with those of other
images. If the table has no entry for a cipher, no attack on this cipher was measured. A missing
entry does not mean that the cipher is safer than one with an entry.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fl_vitlora.encryption.cipher import Cipher

NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A measured attack that uses only ciphertexts.

    Attributes:
        data: The name of the attacked data set, as in the setting `data.name`.
        image_shape: The shape (C, H, W) of an image with C channels and H × W pixels.
        block_size: The side of a block in pixels.
        steps: The names of the encryption steps. The attack also finds the key of a cipher with
            only some of these steps: a cipher without a step equals a cipher whose key for this
            step changes nothing, and the attack finds such a key, too.
        scopes: The values of `encryption.scope` for which the attack was measured. With any of
            these scopes, one key encrypts many images.
        ciphertexts: A number of ciphertexts that was enough to recover the whole key, for every key
            that was attacked.
        source: The command that prints the number `ciphertexts`.
    """

    data: str
    image_shape: tuple[int, int, int]
    block_size: int
    steps: frozenset[str]
    scopes: frozenset[str]
    ciphertexts: int
    source: str


MEASURED = (
    Case(
        data="digits",
        image_shape=(3, 16, 16),
        block_size=4,
        steps=frozenset({"block_scrambling", "pixel_shuffling", "negative_positive"}),
        scopes=frozenset({"shared", "client"}),
        ciphertexts=10,
        source="python -m benchmarks.attacks ciphertext",
    ),
)


def falls_to_ciphertexts(cipher: Cipher, scope: str, data: str) -> int | str | None:
    """Returns how many ciphertexts with the same key an attack needed to find this key.

    Args:
        cipher: The cipher, with its steps, its block size and the shape of the images.
        scope: The images that share a key: "shared", "client", "image" or "block".
        data: The name of the data set, as in the setting `data.name`.

    Returns:
        The number of ciphertexts, "not measured" if no attack on this cipher was measured, or None
        if the cipher has no steps.

    Example:
        >>> steps = ("block_scrambling", "pixel_shuffling", "negative_positive")
        >>> default = Cipher(steps=steps, block_size=4, image_shape=(3, 16, 16))
        >>> falls_to_ciphertexts(default, "shared", "digits")
        10
        >>> falls_to_ciphertexts(default, "image", "digits")
        'not measured'
    """
    if not cipher.steps:
        return None
    found = [case.ciphertexts for case in MEASURED if _covers(case, cipher, scope, data)]
    return min(found) if found else NOT_MEASURED


def _covers(case: Case, cipher: Cipher, scope: str, data: str) -> bool:
    steps: Collection[str] = cipher.steps
    return (
        data == case.data
        and scope in case.scopes
        and case.steps.issuperset(steps)
        and cipher.block_size == case.block_size
        and cipher.image_shape == case.image_shape
    )
