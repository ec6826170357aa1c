"""Block scrambling: the blocks X of an image change places, X' = X[key].

The key is one permutation of the N block positions. There are N! keys.
Source: the encryption of images for vision transformers in arXiv 2309.02556 and 2507.11943.

Letters in shapes: B images, N blocks, D entries a block.
"""

from __future__ import annotations

from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.keystream import KeyStream, permutation_bits
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.steps.entries import inverse_order as inverse
from fl_vitlora.errors import UserError

__all__ = ["adapt", "draw_key", "encrypt", "inverse", "key_space_bits"]


def draw_key(stream: KeyStream, geometry: Geometry) -> Tensor:
    """Draws a permutation of the N block positions, int64 (N,)."""
    return stream.restricted_permutation(geometry.blocks, geometry.fixed_blocks)


def encrypt(x: Tensor, key: Tensor) -> Tensor:
    """Scrambles blocks (B, N, D): position i receives block key[i]."""
    return x[:, key]


def adapt(reader: PatchReader, key: Tensor) -> PatchReader:
    """Adapts a model to scrambled images.

    The position embeddings, and the kernels if every patch has its own kernel, move like the
    blocks.

    Raises:
        UserError: When the model does not add position embeddings to its tokens. Rotary and
            relative positions belong to a place in the image, so they cannot move with a block.
    """
    if reader.position is None:
        raise UserError(
            "block scrambling has no key adaptation for a model without an additive position "
            "embedding; omit this step, or choose a plain ViT"
        )
    weight = reader.weight[key] if reader.weight.ndim == 3 else reader.weight
    return PatchReader(weight=weight, position=reader.position[key])


def key_space_bits(geometry: Geometry) -> float:
    """Returns the size of the key space in bits: log₂(N! / N_bs!) if N_bs blocks are fixed.

    Example:
        >>> round(key_space_bits(Geometry(blocks=196, channels=3, block_size=16)), 1)
        1214.8
    """
    return permutation_bits(geometry.blocks, geometry.fixed_blocks)
