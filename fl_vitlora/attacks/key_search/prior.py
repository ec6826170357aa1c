"""An attacker's knowledge of plain images: their correlations, and a normal distribution of them.

Letters in shapes: n images, N blocks, D entries of a block, G groups of equal entries (D/3 for grey
images), M plain images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.attacks.key_search.block_statistics import (
    Indices,
    Matrix,
    correlations,
    equal_entries,
)
from fl_vitlora.attacks.key_search.matching import mirror_images, with_channels
from fl_vitlora.encryption.image_blocks import to_blocks

Blocks = NDArray[np.float64]
RIDGE = 0.02  # added to the variance of every pixel; pixels are in [-1, 1]


def signed_blocks(images: Tensor, block_size: int) -> Blocks:
    """Cuts uint8 images into blocks of pixels in [-1, 1], (n, N, D)."""
    return to_blocks(images, block_size).numpy().astype(np.float64) / 127.5 - 1


@dataclass(frozen=True)
class Normal:
    """A normal distribution.

    Attributes:
        mean: Mean, (D,).
        precision: Inverse of the covariance, (D, D).
        log_volume: Logarithm of the covariance's determinant.
    """

    mean: Matrix
    precision: Matrix
    log_volume: float

    @classmethod
    def of(cls, samples: Matrix) -> Self:
        """Fits a normal distribution to samples, (M, D)."""
        covariance = np.cov(samples.T) + RIDGE * np.eye(samples.shape[1])
        volume = float(np.linalg.slogdet(covariance)[1])
        precision: Matrix = np.linalg.inv(covariance).astype(np.float64)
        return cls(samples.mean(axis=0), precision, volume)

    def likelihood(self, samples: Matrix) -> Matrix:
        """Returns the log-likelihood of samples (..., D), except for a constant."""
        away = samples - self.mean
        distance: Matrix = ((away @ self.precision) * away).sum(axis=-1)
        return -0.5 * (distance + self.log_volume)


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The attacker's knowledge of plain images.

    Attributes:
        groups: G groups of entries that are always equal.
        correlation: Correlations within blocks, between one entry of each group, (G, G).
        places: The distribution of the blocks at each of the N places, over G entries.
        whole: Distribution of whole images, over N·G entries.
        block_size: Block size p.
        channels: Number C of channels.
    """

    groups: Sequence[Indices]
    correlation: Matrix
    places: Sequence[Normal]
    whole: Normal
    block_size: int
    channels: int

    @classmethod
    def of(cls, images: Tensor, block_size: int) -> Self:
        """Learns the prior from plain images, uint8 (M, C, H, W)."""
        blocks = signed_blocks(images, block_size)
        groups = equal_entries(correlations(pooled(blocks)))
        blocks = blocks[:, :, first_of(groups)]
        return cls(
            groups=groups,
            correlation=correlations(pooled(blocks)),
            places=[Normal.of(blocks[:, place]) for place in range(blocks.shape[1])],
            whole=Normal.of(blocks.reshape(len(blocks), -1)),
            block_size=block_size,
            channels=images.shape[1],
        )

    def mirrored(self) -> Iterator[Indices]:
        """Yields the mirror images of a block as orders of its groups; the identity comes first."""
        number = {int(entry): g for g, group in enumerate(self.groups) for entry in group}
        for image in mirror_images(self.block_size, self.block_size):
            entries = with_channels(image, self.channels)
            yield np.array([number[int(entries[entry])] for entry in first_of(self.groups)])


def pooled(blocks: Blocks) -> Matrix:
    """Returns all blocks of all images as samples of one block, (n·N, D)."""
    return blocks.reshape(-1, blocks.shape[-1])


def first_of(groups: Sequence[Indices]) -> Indices:
    """Returns the first entry of each group."""
    return np.array([group[0] for group in groups])
