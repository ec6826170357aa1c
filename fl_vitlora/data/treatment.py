"""Changes plain images before encryption: first with simulated sensors, then by making copies.

The sensor is the simulated camera of a client. Therefore the sensor comes first, and it is the same
for all images of a client, including its validation images and test images. The owner of the images
makes the copies, and makes copies only of training images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.augmentation import positions_of_copies, with_copies
from fl_vitlora.data.images import Images, Indices
from fl_vitlora.data.sensors import through_sensors


def treat(
    config: DataConfig,
    seed: int,
    *,
    train: Images,
    test: Images,
    parts: Sequence[Indices],
    test_parts: Sequence[Indices],
    validation: Sequence[Indices],
) -> tuple[Images, Images, list[Indices]]:
    """Returns the plain images with all changes that come before encryption.

    Common images for validation or testing belong to no client, so no sensor changes common images.

    Args:
        config: The settings of the data: `feature_skew`, `copies` and `augment`.
        seed: The run's seed.
        train: The plain training images of all clients.
        test: The plain test images.
        parts: A list with an array for each client: the positions of the client's images in
            `train`.
        test_parts: A list with an array for each client: the positions of the client's images in
            `test`. The list is empty if the test images are common.
        validation: The positions of the validation images in `train`. If `test_parts` is not empty,
            there is one array for each client, otherwise one array for all. The validation images
            have the same positions in the returned training images.

    Returns:
        Three values: the training images, the test images, and the positions of each client's
        training images with all copies.
    """
    skew, copies = config.feature_skew, config.copies
    if skew:
        own = [*parts, *validation] if test_parts else parts
        clients = [number % len(parts) for number in range(len(own))]
        train = through_sensors(
            train, _holders(len(train), own, clients), part="train", skew=skew, seed=seed
        )
        holders = _holders(len(test), test_parts, range(len(test_parts)))
        test = through_sensors(test, holders, part="test", skew=skew, seed=seed)
    if copies > 1:
        parts = [positions_of_copies(part, len(train), copies) for part in parts]
        train = with_copies(train, copies, config.augment, seed)
    return train, test, list(parts)


def tell_treatment(config: DataConfig) -> str:
    """Returns the end of a line of text about the changes before encryption; "" without changes.

    Args:
        config: The settings of the data.

    Example:
        >>> tell_treatment(DataConfig(copies=2, augment=("crop",)))
        '; each training image is encrypted as 2 copies (crop)'
    """
    told = ""
    if config.feature_skew:
        told += f"; each client has its own sensor (data.feature_skew {config.feature_skew:g})"
    if config.copies > 1:
        told += (
            f"; each training image is encrypted as {config.copies} copies "
            f"({' and '.join(config.augment)})"
        )
    return told


def _holders(images: int, parts: Sequence[Indices], clients: Sequence[int]) -> Indices:
    """Returns the number of each image's client, int64 (n,); -1 for an image without a client."""
    holders = np.full(images, -1)
    for part, client in zip(parts, clients, strict=True):
        holders[part] = client
    return holders
