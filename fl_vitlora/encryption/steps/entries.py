"""Functions that permute and invert the entries of blocks; most encryption steps use them.

A key that is the same for all blocks has shape (D,). A key that differs from block to block has
shape (N, D).

Letters in shapes: B images, N blocks, D entries a block, W width of the model.
"""

from __future__ import annotations

from torch import Tensor

from fl_vitlora.encryption.patch_reader import PatchReader


def permute(x: Tensor, order: Tensor) -> Tensor:
    """Permutes the entries of blocks x (B, N, D).

    In block n, entry order[j] moves to place j. If `order` has shape (N, D), entry order[n, j]
    moves to place j.
    """
    return x[..., order] if order.ndim == 1 else x.gather(-1, order.expand(len(x), -1, -1))


def inverse_order(order: Tensor) -> Tensor:
    """Returns the inverse of a permutation (D,), or of N permutations (N, D)."""
    return order.argsort(dim=-1)


def permute_columns(reader: PatchReader, order: Tensor) -> PatchReader:
    """Permutes the columns of a patch embedding as `permute` permutes the entries of blocks.

    If the order has shape (N, D), the result has a separate kernel for each of the N patches.
    """
    if order.ndim == 1:
        return reader.with_weight(reader.weight[..., order])
    weight = reader.weight_of_blocks(len(order))
    return reader.with_weight(weight.gather(-1, order.unsqueeze(1).expand_as(weight)))


def invert(x: Tensor, chosen: Tensor) -> Tensor:
    """Replaces chosen entries q of blocks x, uint8 (B, N, D), by 255 - q; this flips all bits."""
    return x ^ (chosen * 255).to(x.dtype)


def negate_columns(reader: PatchReader, chosen: Tensor) -> PatchReader:
    """Negates the columns of chosen entries in a patch embedding.

    If a pixel is inverted, its value on the scale [-1, 1] is negated.
    """
    signs = 1 - 2 * chosen.to(reader.weight.dtype)
    if chosen.ndim == 1:
        return reader.with_weight(reader.weight * signs)
    return reader.with_weight(reader.weight_of_blocks(len(chosen)) * signs.unsqueeze(1))


def same(key: Tensor) -> Tensor:
    """Returns the key itself, for steps that are their own inverse."""
    return key
