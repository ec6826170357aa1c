"""Converts a key that treats all blocks in the same way to a key of three steps.

Many ciphers of this project do the same to all blocks of an image: they move the entries of a
block, invert some of them, and move the blocks. The key of such a cipher can be written as keys of
pixel shuffling, of the negative-positive transformation and of block scrambling, even if the cipher
has other steps. In this form, a guess can be compared with the true key, and can decrypt images.

Letters in shapes: N patches, D entries of a patch.
"""

from __future__ import annotations

import torch

from fl_vitlora.encryption.cipher import CipherKey
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError

VARIED = "each block of an image is encrypted differently"
HALVED = "the encryption moves halves of pixels"


def three_steps(holder: KeyHolder, party: str) -> CipherKey | str:
    """Returns the key of a party as a key of the three steps.

    To read the key, the holder adapts an artificial model to it, whose patch embedding and
    position embedding are identity matrices. Afterwards the places of the ones show how the key
    moves entries and blocks, and their signs show which entries it inverts.

    Args:
        holder: The key holder.
        party: The name of the party, for example "client 3".

    Returns:
        The key, or a text with the reason why the key cannot be written in this form.

    Example:
        >>> from fl_vitlora.encryption.cipher import Cipher
        >>> cipher = Cipher(steps=["negative_positive"], block_size=1, image_shape=(3, 1, 1))
        >>> key = three_steps(KeyHolder(cipher=cipher, secret=bytes(32)), "client 0")
        >>> key["pixel_shuffling"].tolist(), key["negative_positive"].tolist()
        ([0, 1, 2], [True, False, True])
    """
    if holder.scope == "image" and holder.cipher.steps:
        return "every image has its own key"
    geometry = holder.cipher.geometry
    identity = PatchReader(weight=torch.eye(geometry.entries), position=torch.eye(geometry.blocks))
    try:
        adapted = holder.adapt(identity, party)
    except UserError:
        return HALVED
    if adapted.weight.ndim == 3:
        return VARIED
    assert adapted.position is not None
    entries = adapted.weight.abs().argmax(dim=0)
    return {
        "pixel_shuffling": entries,
        "negative_positive": adapted.weight.gather(0, entries[None])[0] < 0,
        "block_scrambling": adapted.position.argmax(dim=1),
    }
