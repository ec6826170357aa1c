"""The rule `nearest` of layer tying: the two blocks with the most similar products are tied.

The rule is one step of agglomerative clustering: the two most similar untied blocks become one
group, and all blocks of the group use the pairs of the earlier block. To compare two blocks, all
products B·A of each block are joined into one vector. The similarity of the blocks is the cosine of
the angle between the two vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def pairs_of(block: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns a dictionary from names within a block to full names of low-rank matrices."""
    start = f"blocks.{block}."
    own = (n for n in tensors if n.startswith(start) and n.endswith((".lora_A", ".lora_B")))
    return {name.removeprefix(start): name for name in own}


def nearest_tied(ties: list[int], tensors: Mapping[str, Tensor]) -> list[int]:
    """Ties the two untied blocks whose products B·A have the largest cosine similarity.

    Args:
        ties: The present ties. Entry i is the number of the block whose pairs block i uses.
        tensors: The exchanged tensors.

    Returns:
        The new ties.
    """
    roots = sorted(set(ties))
    products = {root: _products(root, tensors) for root in roots}
    similar = {
        (one, other): float(torch.cosine_similarity(products[one], products[other], dim=0))
        for one in roots
        for other in roots
        if one < other
    }
    kept, tied = max(similar, key=lambda pair: similar[pair])
    return [kept if tie == tied else tie for tie in ties]


def _products(block: int, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns all products B·A of a block in one vector."""
    own = pairs_of(block, tensors)
    ends = [end.removesuffix(".lora_A") for end in own if end.endswith(".lora_A")]
    found = [tensors[own[f"{e}.lora_B"]] @ tensors[own[f"{e}.lora_A"]] for e in ends]
    return torch.cat([product.flatten() for product in found])
