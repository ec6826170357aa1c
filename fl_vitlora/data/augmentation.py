"""Makes copies of training images, which their owner changes at random before encryption.

Images can be flipped or cropped only before encryption. Therefore the owner of an image encrypts
several copies of each training image. The first copy is the image itself.

Letters in shapes: n images, C channels, H × W pixels, k copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.images import Images, Indices
from fl_vitlora.errors import UserError
from fl_vitlora.rng import derive_seed

FLIP, CROP = "flip", "crop"
MARGIN = 4 / 32  # the margin as a share of the image's side, as is usual for CIFAR-10


def check_copies(config: DataConfig) -> None:
    """Checks that the settings `copies` and `augment` fit each other.

    Args:
        config: The settings of the data: `copies` and `augment`.

    Raises:
        UserError: When copies would equal each other, or when a setting would have no effect.
    """
    copies, augment = config.copies, config.augment
    if len(set(augment)) < len(augment):
        raise UserError(f"data.augment {list(augment)}: expected each kind of change at most once")
    if augment and copies == 1:
        raise UserError(
            f"data.augment {list(augment)} with data.copies 1: the only copy is the image itself; "
            "expected at least 2 copies: --set data.copies=2"
        )
    if copies > 1 and not augment:
        raise UserError(
            f"data.copies {copies} without data.augment: choose how the copies differ, for example "
            "--set data.augment=crop, or --set 'data.augment=[flip,crop]' for images that may be "
            "mirrored"
        )
    if copies > 2 and augment == (FLIP,):
        raise UserError(
            f"data.copies {copies} with data.augment flip: an image has only one mirror image; "
            "set data.copies=2, or add crop"
        )


def augmented(image: Tensor, copy: int, augment: Sequence[str], seed: int) -> Tensor:
    """Returns one copy of an image.

    * crop: the image is extended beyond its edges by mirrored pixels, with margins of H/8 and W/8
      pixels. A window of H × W pixels is cut out at a random place; all places have the same
      probability.
    * flip: every second copy is mirrored left to right, beginning with copy 1. If each copy
      were mirrored with probability 1/2, two copies could be equal by chance.

    Args:
        image: The image, uint8 (C, H, W).
        copy: The number of the copy, from 0. Copy 0 is the image itself.
        augment: The changes: "flip", "crop" or both.
        seed: The seed with which the place of the window is drawn.

    Returns:
        The copy, uint8 (C, H, W).

    Example:
        >>> augmented(torch.tensor([[[1, 2, 3]]], dtype=torch.uint8), 1, ["flip"], seed=0)
        tensor([[[3, 2, 1]]], dtype=torch.uint8)
    """
    if copy == 0:
        return image
    if FLIP in augment and copy % 2:
        image = image.flip(-1)
    if CROP in augment:
        draw = np.random.default_rng(seed)
        rows, columns = (_window(side, draw) for side in image.shape[1:])
        image = torch.from_numpy(image.numpy().take(rows, 1).take(columns, 2))
    return image


def with_copies(images: Images, copies: int, augment: Sequence[str], seed: int) -> Images:
    """Returns k copies of all images.

    Position c·n + i has copy c of image i. Therefore the first n positions have the images
    themselves.

    Args:
        images: The images.
        copies: The number k of copies, which includes the images themselves.
        augment: The changes: "flip", "crop" or both.
        seed: The run's seed. The same seed makes the same copies, in any order of reading and on
            any machine.
    """
    count, names = len(images), images.names

    def read(positions: Indices, height: int, width: int) -> Tensor:
        unique, places = np.unique(positions % count, return_inverse=True)
        pixels = images.read(unique, height, width)[torch.from_numpy(places)]
        for row, position in enumerate(positions.tolist()):
            copy, original = divmod(position, count)
            if copy:
                own = derive_seed(seed, "copy", copy, original)
                pixels[row] = augmented(pixels[row], copy, augment, own)
        return pixels

    return Images(
        labels=np.tile(images.labels, copies),
        class_names=images.class_names,
        read=read,
        owners=None if images.owners is None else np.tile(images.owners, copies),
        clients=images.clients,
        names=None if names is None else lambda positions: names(positions % count),
    )


def positions_of_copies(part: Indices, images: int, copies: int) -> Indices:
    """Returns the positions of all copies of a client's images, beginning with the images.

    Args:
        part: The positions of the client's images.
        images: The number n of all images.
        copies: The number k of copies.

    Example:
        >>> positions_of_copies(np.array([4, 1]), images=10, copies=2).tolist()
        [4, 1, 14, 11]
    """
    return np.concatenate([part + copy * images for copy in range(copies)])


def mirrored(places: Indices, side: int) -> Indices:
    """Returns the positions of the pixels that a mirrored image shows inside and beyond its edges.

    The image is mirrored at its outermost pixels, so the outermost pixels are not repeated.

    Args:
        places: The places, from 1 - `side` to 2·`side` - 2. Places from 0 to `side` - 1 are inside
            the image.
        side: The number of pixels of the image's side.

    Example:
        >>> mirrored(np.arange(-2, 6), side=4).tolist()
        [2, 1, 0, 1, 2, 3, 2, 1]
    """
    last = side - 1
    inside: Indices = last - np.abs(last - np.abs(places))
    return inside


def _window(side: int, draw: np.random.Generator) -> Indices:
    """Draws the place of the window along one side, and returns the positions of its pixels."""
    margin = round(side * MARGIN)
    return mirrored(np.arange(side) + draw.integers(-margin, margin + 1), side)
