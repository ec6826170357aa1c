"""Labelled images that are read on demand: the value in which every source ends.

Labels are in memory, pixels are read when they are asked for, so that a data set larger than
memory can be encrypted shard by shard.

n images of H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images that are read on demand.

    Attributes:
        labels: int64 (n,), from 0.
        class_names: The name of each label; a class is known by its name in all splits.
        read: Takes positions, H and W, returns RGB pixels, uint8 (len(positions), 3, H, W).
        owners: int64 (n,), the client that holds each image, where the data set says so.
    """

    labels: Indices
    class_names: tuple[str, ...]
    read: Callable[[Indices, int, int], Tensor]
    owners: Indices | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Indices) -> Images:
        """Keeps only some images, in the order given."""
        return replace(
            self,
            labels=self.labels[positions],
            read=lambda inner, height, width: self.read(positions[inner], height, width),
            owners=None if self.owners is None else self.owners[positions],
        )
