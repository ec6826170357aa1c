"""Finds a key that does the same to all blocks, from pairs of a plain image and its ciphertext.

The ciphertext is y[n, j] = x[k(n), e(j)], inverted if m(j) is true: k is the order of blocks, e the
order of entries, and m the mask. The method is exact elimination. A block of ciphertext can come
only from a plain block with the same values in some order, perhaps inverted. An entry can come only
from an entry with the same values over all blocks, perhaps inverted. If the origins of some entries
are known, more blocks can be distinguished. If the origins of some blocks are known, more entries
can be distinguished. This is colour refinement: blocks that cannot yet be distinguished have one
number, which is called their colour, and so do entries. If nothing more follows, one block is
guessed, and the elimination goes on.

Blocks or entries that are equal in all pairs cannot be distinguished; their order is arbitrary.

Letters in shapes: Q pairs, N blocks, D entries of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.attacks.key_search.block_statistics import Indices
from fl_vitlora.encryption.cipher import CipherKey
from fl_vitlora.encryption.image_blocks import to_blocks

Bytes = NDArray[np.uint8]
Flags = NDArray[np.bool_]
Both = tuple[Indices, Indices]  # a pair: one for the plain images, one for their ciphertext
WHITE = np.uint8(255)


def key_from_pairs(plain: Tensor, ciphertext: Tensor, block_size: int) -> CipherKey:
    """Finds a key that does the same to all blocks.

    Args:
        plain: Plain images, uint8 (Q, C, H, W).
        ciphertext: The ciphertext of these images, all encrypted under one key, (Q, C, H, W).
        block_size: The side of a block in pixels.

    Returns:
        A key of the three steps (`three_steps`) that encrypts all pairs correctly, if such a key
        exists.
    """
    cells = _numbered(*(to_blocks(images, block_size).numpy() for images in (plain, ciphertext)))
    blocks = _nothing(len(cells[0][0])), _nothing(len(cells[1][0]))
    blocks, entries, turned = _refined(cells, blocks)
    while (unsettled := _unsettled(cells[0][0], blocks[0])) is not None:
        if unsettled not in blocks[1]:
            break  # no key does the same to all blocks
        for colours in blocks:
            colours[int(np.argmax(colours == unsettled))] = colours.max() + 1
        blocks, entries, turned = _refined(cells, blocks)
    order = matched(*entries)
    return {
        "block_scrambling": torch.from_numpy(matched(*blocks)),
        "pixel_shuffling": torch.from_numpy(order),
        "negative_positive": torch.from_numpy(turned[0][order] != turned[1]),
    }


def matched(plain: Indices, ciphertext: Indices) -> Indices:
    """Pairs each member of one group with a member of the other group that has the same colour.

    Members of one colour are paired in the order in which they appear.

    Args:
        plain: The colour of each plain member.
        ciphertext: The colour of each member of the ciphertext; there are as many as in `plain`.

    Returns:
        A different plain member for each member of the ciphertext. A member without a partner of
        its colour gets one of the remaining plain members.

    Example:
        >>> matched(np.array([7, 5, 5, 2]), np.array([5, 2, 5, 5])).tolist()
        [1, 3, 2, 0]
    """
    waiting: dict[int, list[int]] = {}
    for place in reversed(range(len(plain))):
        waiting.setdefault(int(plain[place]), []).append(place)
    found = [(waiting.get(int(colour)) or [-1]).pop() for colour in ciphertext]
    left = iter(sorted(set(range(len(plain))) - set(found)))
    return np.array([place if place >= 0 else next(left) for place in found], dtype=np.int64)


def _numbered(plain: Bytes, ciphertext: Bytes) -> tuple[Both, Both]:
    """Numbers the values that each cell (an entry of a block) has in all pairs.

    Args:
        plain: Blocks, (Q, N, D).
        ciphertext: Blocks of the ciphertext, (Q, N, D).

    Returns:
        Two pairs of numbers, each (N, D): for the plain cells and for those of the ciphertext. A
        pair has the numbers of the cells and the numbers of the inverted cells.
    """
    pairs, blocks, entries = plain.shape
    both = np.stack([plain, ciphertext]).transpose(0, 2, 3, 1).reshape(-1, pairs)
    _, numbers = np.unique(np.concatenate([both, WHITE - both]), axis=0, return_inverse=True)
    upright, inverted = numbers.reshape(2, 2, blocks, entries).astype(np.int64)
    return (upright[0], inverted[0]), (upright[1], inverted[1])


def _refined(cells: tuple[Both, Both], blocks: Both) -> tuple[Both, Both, tuple[Flags, Flags]]:
    """Distinguishes blocks and entries, until nothing more follows.

    Args:
        cells: The result of `_numbered`.
        blocks: The colours of the blocks. Blocks of different colours cannot be the same block.

    Returns:
        The colours of the blocks, the colours of the entries, and which entries must be inverted so
        that all entries of one colour agree.
    """
    count = 0
    while True:
        views = [_entries(*own, colours) for own, colours in zip(cells, blocks, strict=True)]
        entries = common_colours(views[0][0], views[1][0])
        turned = views[0][1], views[1][1]
        told = [
            _blocks(*own, colours, view[1], view[2])
            for own, colours, view in zip(cells, entries, views, strict=True)
        ]
        blocks = common_colours(
            *(np.column_stack([c, t]) for c, t in zip(blocks, told, strict=True))
        )
        reached = len(np.unique(blocks[0])) + len(np.unique(entries[0]))
        if reached <= count:
            return blocks, entries, turned
        count = reached


def _entries(upright: Indices, inverted: Indices, blocks: Indices) -> tuple[Indices, Flags, Flags]:
    """Returns each entry's values (D, N), whether it is inverted, and whether that is undecided."""
    width = max(upright.max(), inverted.max()) + 1
    as_is, other = (np.sort((blocks[:, None] * width + c).T, axis=1) for c in (upright, inverted))
    differs = as_is != other
    first = differs.argmax(axis=1)[:, None]
    turned = np.take_along_axis(other < as_is, first, axis=1)[:, 0]
    return np.where(turned[:, None], other, as_is), turned, ~differs.any(axis=1)


def _blocks(
    upright: Indices, inverted: Indices, entries: Indices, turned: Flags, both_ways: Flags
) -> Indices:
    """Returns the values of each block in entries of each colour, (N, D)."""
    width = max(upright.max(), inverted.max()) + 1
    seen = np.where(turned, inverted, upright)
    seen = np.where(both_ways, np.minimum(upright, inverted), seen)
    return np.sort(entries * width + seen, axis=1)


def _unsettled(cells: Indices, blocks: Indices) -> int | None:
    """Returns a colour that different plain blocks share; None if there is none."""
    for colour, members in _groups(blocks):
        if (cells[members] != cells[members[0]]).any():
            return colour
    return None


def _groups(colours: Indices) -> Iterator[tuple[int, Indices]]:
    for colour in np.unique(colours):
        yield int(colour), np.flatnonzero(colours == colour)


def common_colours(plain: Indices | Bytes, ciphertext: Indices | Bytes) -> Both:
    """Numbers the different rows of two matrices; equal rows have equal numbers."""
    rows = np.concatenate([plain, ciphertext])
    numbers = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return numbers[: len(plain)], numbers[len(plain) :]


def _nothing(length: int) -> Indices:
    return np.zeros(length, dtype=np.int64)
