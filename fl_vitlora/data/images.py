"""The type `Images`: labels of images, and a function that reads pixels when they are needed.

Every source of images returns values of this type. The labels are in memory; the pixels are read
only when they are needed. Therefore a data set that is larger than the memory can be encrypted in
pieces.

Letters in shapes: n images, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]
Name = str | int  # the name of a client; in Python, true and false also have the type int


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images with labels; the pixels are read when they are needed.

    Attributes:
        labels: The label of each image, int64 (n,), from 0.
        class_names: The name of each class, in the order of the labels. The training images and the
            test images have the same list.
        read: A function that takes positions, H and W, and returns the RGB pixels of the images at
            these positions, uint8 (len(positions), 3, H, W).
        owners: The number of the client that owns each image, int64 (n,); None if the data set does
            not name clients.
        clients: The name of each client, in the order of the numbers in `owners`.
        names: A function that takes positions and returns the names of the images at these
            positions, such as the paths of their files; None if the images have no names.
    """

    labels: Indices
    class_names: tuple[str, ...]
    read: Callable[[Indices, int, int], Tensor]
    owners: Indices | None = None
    clients: tuple[Name, ...] = ()
    names: Callable[[Indices], Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Indices) -> Images:
        """Returns only the images at the given positions, in the order of the positions.

        Args:
            positions: The positions of the images to keep, int64.
        """
        return replace(
            self,
            labels=self.labels[positions],
            read=lambda inner, height, width: self.read(positions[inner], height, width),
            owners=None if self.owners is None else self.owners[positions],
            names=self._names_at(positions),
        )

    def _names_at(self, positions: Indices) -> Callable[[Indices], Sequence[str]] | None:
        """Returns a function from positions within `positions` to the names of these images."""
        names = self.names
        return None if names is None else lambda inner: names(positions[inner])

    def join(self, others: Images) -> Images:
        """Returns these images followed by other images of the same classes.

        Args:
            others: The other images. The numbers of their owners must mean the same clients.
        """
        count, owners = len(self), None
        if self.owners is not None and others.owners is not None:
            owners = np.concatenate([self.owners, others.owners])

        def read(positions: Indices, height: int, width: int) -> Tensor:
            own = positions < count
            pixels = torch.empty((len(positions), 3, height, width), dtype=torch.uint8)
            pixels[torch.from_numpy(own)] = self.read(positions[own], height, width)
            rest = others.read(positions[~own] - count, height, width)
            pixels[torch.from_numpy(~own)] = rest
            return pixels

        labels = np.concatenate([self.labels, others.labels])
        return replace(self, labels=labels, read=read, owners=owners, names=None)
