"""Lists all keys of a cipher that has few of them.

Letters in shapes: N blocks, D entries of a block, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fl_vitlora.encryption.cipher import Cipher, CipherKey
from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.steps.rotation_inversion import symmetries


def all_keys(cipher: Cipher) -> Iterator[CipherKey]:
    """Yields each key of a cipher once.

    Args:
        cipher: The cipher. Its number of keys is at most 2 to the power of its `key_space_bits`.

    Raises:
        KeyError: If `LISTS` has no function that lists the keys of a step of the cipher.

    Example:
        >>> cipher = Cipher(steps=["block_scrambling"], block_size=1, image_shape=(1, 1, 2))
        >>> [key["block_scrambling"].tolist() for key in all_keys(cipher)]
        [[0, 1], [1, 0]]
    """
    lists = [list(LISTS[step](cipher.geometry)) for step in cipher.steps]
    for keys in itertools.product(*lists):
        yield dict(zip(cipher.steps, keys, strict=True))


def orders(length: int, fixed: int) -> Iterator[Tensor]:
    """Yields all permutations of 0 … length-1 in which at least `fixed` numbers keep their place.

    Example:
        >>> [order.tolist() for order in orders(3, fixed=1)]
        [[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]]
    """
    known = set[tuple[int, ...]]()
    for places in itertools.combinations(range(length), length - fixed):
        for moved in itertools.permutations(places):
            order = list(range(length))
            for place, number in zip(places, moved, strict=True):
                order[place] = number
            if tuple(order) not in known:
                known.add(tuple(order))
                yield torch.tensor(order)


def _block_scrambling(geometry: Geometry) -> Iterator[Tensor]:
    return orders(geometry.blocks, geometry.fixed_blocks)


def _pixel_shuffling(geometry: Geometry) -> Iterator[Tensor]:
    one = list(orders(geometry.entries, geometry.fixed_entries))
    for chosen in itertools.product(one, repeat=geometry.keys):
        yield torch.stack(chosen).view(geometry.key_shape)


def _negative_positive(geometry: Geometry) -> Iterator[Tensor]:
    for bits in itertools.product((False, True), repeat=geometry.keys * geometry.entries):
        yield torch.tensor(bits).view(geometry.key_shape)


def _block_negative_positive(geometry: Geometry) -> Iterator[Tensor]:
    for bits in itertools.product((False, True), repeat=geometry.blocks):
        yield torch.tensor(bits).unsqueeze(1)


def _colour_shuffling(geometry: Geometry) -> Iterator[Tensor]:
    entries = torch.arange(geometry.entries).view(geometry.channels, -1)
    one = [entries[order].flatten() for order in orders(geometry.channels, fixed=0)]
    return map(torch.stack, itertools.product(one, repeat=geometry.blocks))


def _rotation_inversion(geometry: Geometry) -> Iterator[Tensor]:
    one = list(symmetries(geometry))
    return map(torch.stack, itertools.product(one, repeat=geometry.blocks))


LISTS: Mapping[str, Callable[[Geometry], Iterator[Tensor]]] = {
    "block_scrambling": _block_scrambling,
    "pixel_shuffling": _pixel_shuffling,
    "negative_positive": _negative_positive,
    "block_negative_positive": _block_negative_positive,
    "colour_shuffling": _colour_shuffling,
    "rotation_inversion": _rotation_inversion,
}
