"""Puts scrambled blocks back in order, one image at a time, as a jigsaw puzzle.

Each image is solved by itself (`key_search.jigsaw`), so a key for every image does not prevent the
attack. The attack works only if block scrambling is the only step. Any other step changes the
pixels inside the blocks. The edges of neighbouring blocks then no longer continue each other.

Source: Chuman & Kiya (arXiv 2211.02369), who also attack steps that change the inside of blocks.

Letters in shapes: n images, N blocks, p block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_search.block_fit import Costs, Habits, squares
from fl_vitlora.attacks.key_search.block_statistics import Indices
from fl_vitlora.attacks.key_search.jigsaw import solved
from fl_vitlora.attacks.pictures import Pictures, beside
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ThiefView, WorkerView
from fl_vitlora.encryption.image_blocks import from_blocks, grid, to_blocks

FEWEST_BLOCKS, MOST_BLOCKS = 4, 200  # blocks of an image; all pairs of blocks are compared
FEWEST_KNOWN, MOST_KNOWN = 20, 200  # plain images that show how blocks at each place usually look
DRAWS = 20  # random orders of the blocks of an image; their mean is the figure by chance


@dataclass(frozen=True)
class Ordered:
    """A guess: images whose blocks are in order.

    Attributes:
        client: The number of the client.
        images: The first images of the client, uint8 (n, C, H, W).
        block_size: The side p of a block in pixels.
    """

    client: int
    images: Tensor
    block_size: int


@dataclass(frozen=True, kw_only=True)
class BlockJigsaw(Attack[WorkerView | ThiefView, Ordered]):
    """The attack on the first `images` ciphertexts of a client, each image by itself."""

    adversaries = (WorkerView, ThiefView)
    goal = "The order of the blocks of single images, from edges that continue each other."
    figures = ("blocks put in their place", "neighbours put side by side")

    def lacks(self, view: WorkerView | ThiefView) -> str:
        """Returns why the adversary has no puzzle that it can solve; empty if it has one."""
        public = view.public
        if view.sealed or "block_scrambling" not in public.cipher.steps:
            return view.sealed or "the blocks are not scrambled"
        if len(public.images) < FEWEST_KNOWN:
            known = len(public.images)
            return f"it needs {FEWEST_KNOWN} plain images of the same kind, and {known} are at hand"
        if not FEWEST_BLOCKS <= public.cipher.geometry.blocks <= MOST_BLOCKS:
            return f"the search takes images of {FEWEST_BLOCKS} to {MOST_BLOCKS} blocks"
        return ""

    def guess(self, view: WorkerView | ThiefView) -> Ordered:
        """Solves the first images of the client, one by one."""
        assert view.images is not None
        size, seen = view.public.cipher.block_size, view.images[: self.images]
        habits = Habits.of(view.public.images[:MOST_KNOWN], size)
        blocks = to_blocks(seen, size)
        for number, pieces in enumerate(squares(seen, size)):
            order = torch.from_numpy(solved(Costs.of(pieces, habits), habits))
            blocks[number] = blocks[number, order]
        images = from_blocks(blocks, seen.shape[-2], seen.shape[-1], size)
        return Ordered(client=view.client, images=images, block_size=size)

    def score(self, guess: Ordered, truth: Truth) -> Sequence[Figure]:
        """Returns the share of blocks in their place, and the share of correct neighbours.

        Blocks with the same values count as the same block, whatever the order of the values is.
        The figure by chance is the mean over random orders of the same blocks.
        """
        plain = truth.owned[guess.client].plain[: len(guess.images)]
        found, chance = list[tuple[float, float]](), list[tuple[float, float]]()
        generator = np.random.default_rng(0)
        shape = grid(plain.shape[-2], plain.shape[-1], guess.block_size)
        for true, ordered in zip(*_names(plain, guess.images, guess.block_size), strict=True):
            found.append(_shares(ordered, true, shape))
            draws = (generator.permutation(true) for _ in range(DRAWS))
            chance += [_shares(order, true, shape) for order in draws]
        return [
            Figure(
                name=name,
                value=100 * mean(one[which] for one in found),
                floor=100 * mean(one[which] for one in chance),
                ceiling=100,
            )
            for which, name in enumerate(self.figures)
        ]

    def pictures(self, guess: Ordered, truth: Truth) -> Pictures:
        """Returns the first images of the client with their blocks in the guessed order."""
        return beside(truth.owned[guess.client], guess.images)


def _names(plain: Tensor, ordered: Tensor, block_size: int) -> tuple[Indices, Indices]:
    """Numbers the different blocks of plain images and of ordered images, (n, N) each.

    Blocks with the same values have the same number, even if the values are in another order or
    inverted.
    """
    blocks = to_blocks(torch.cat([plain, ordered]), block_size).numpy()
    values = np.sort(np.minimum(blocks, 255 - blocks), axis=-1)
    numbers = np.unique(values.reshape(-1, values.shape[-1]), axis=0, return_inverse=True)[1]
    first, second = numbers.reshape(2, len(plain), -1).astype(np.int64)
    return first, second


def _shares(order: Indices, true: Indices, shape: tuple[int, int]) -> tuple[float, float]:
    """Returns the shares of correct places and of correct neighbours in an order of blocks (N,)."""
    found, right = order.reshape(shape), true.reshape(shape)
    neighbours = [
        pair in set(_pairs(known))
        for table, known in ((found, right), (found.T, right.T))
        for pair in _pairs(table)
    ]
    return float((order == true).mean()), float(np.mean(neighbours)) if neighbours else 0.0


def _pairs(table: Indices) -> list[tuple[int, int]]:
    """Returns the pairs of neighbours within the rows of a table."""
    left, right = table[:, :-1].reshape(-1).tolist(), table[:, 1:].reshape(-1).tolist()
    return list(zip(left, right, strict=True))
