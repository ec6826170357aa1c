"""Finds the key of an adapted patch reader by matching it with the public patch reader.

Adaptation moves the columns of the patch embedding as the key moves the entries of a block, and
negates the columns of inverted entries. Adaptation moves the rows of the position embedding as the
key moves the blocks. So everybody who has both readers can match columns with columns, and rows
with rows.

Letters in shapes: N patches, D entries of a patch, W width of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fl_vitlora.attacks.key_search.matching import assignment
from fl_vitlora.encryption.cipher import CipherKey
from fl_vitlora.encryption.patch_reader import PatchReader


def matched(seen: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Matches columns one to one by the absolute value of their cosine (Hungarian method).

    Args:
        seen: The columns of the attacked matrix, (W, D).
        known: The columns of the known matrix, (W, D).

    Returns:
        A pair: the column of `known` that matches each column of `seen`, int64 (D,), and the
        cosine of the two columns, (D,).

    Example:
        >>> known = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> matched(torch.tensor([[0.0, 2.0], [-1.0, 0.0]]), known)
        (tensor([1, 0]), tensor([-1.,  1.]))
    """
    cosine = normalize(seen, dim=0).T @ normalize(known, dim=0)
    found = torch.from_numpy(assignment(-cosine.abs().double().numpy()))
    return found, cosine.gather(1, found.unsqueeze(1)).squeeze(1)


def key_from_columns(seen: PatchReader, known: PatchReader) -> CipherKey:
    """Finds the key to which a patch reader is adapted.

    Args:
        seen: The patch reader of the trained model, with one kernel for all patches.
        known: The public patch reader.

    Returns:
        A guess of the key, in the format of `three_steps`. Without position embeddings there is no
        guess of the order of blocks.
    """
    order, cosine = matched(seen.weight, known.weight)
    guess = {"pixel_shuffling": order, "negative_positive": cosine < 0}
    if seen.position is None or known.position is None or not seen.position.shape[1]:
        return guess
    return guess | {"block_scrambling": _nearest_rows(seen.position, known.position)}


def _nearest_rows(seen: Tensor, known: Tensor) -> Tensor:
    """Matches rows one to one, so that the sum of their distances is smallest."""
    return torch.from_numpy(assignment(torch.cdist(seen.double(), known.double()).numpy()))
