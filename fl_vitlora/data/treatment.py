"""What owners do to their plain images before they encrypt them: sensors, then copies.

A sensor belongs to the world of the simulation: it decides what the client has photographed. So it
comes first, and it is the same for all images of a client, also for those for validation and for
tests. The copies are the owner's own work, and only training images have them.
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
    """Returns the images as they are encrypted.

    Images for validation or tests that all clients have in common belong to no client, so no sensor
    changes them.

    Args:
        config: The settings of the data: `feature_skew`, `copies` and `augment`.
        seed: The run's seed.
        train: The plain training images of all clients.
        test: The plain test images.
        parts: For each client, the positions of its images in `train`.
        test_parts: For each client, the positions of its images in `test`; empty if the test images
            are common.
        validation: The positions in `train` of the images for validation: one array for each
            client if there are test parts, else one array. These positions stay valid.

    Returns:
        The training images, the test images, and the positions of each client's training images
        with all their copies.
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
    """Returns what the owners do to the images, as the end of a line of text; "" for nothing.

    Args:
        config: The settings of the data.

    Example:
        >>> tell_treatment(DataConfig(copies=2, augment=("crop",)))
        '; each training image is encrypted as 2 copies (crop)'
    """
    told = ""
    if config.feature_skew:
        told += f"; each client has a sensor of its own (data.feature_skew {config.feature_skew:g})"
    if config.copies > 1:
        told += (
            f"; each training image is encrypted as {config.copies} copies "
            f"({' and '.join(config.augment)})"
        )
    return told


def _holders(images: int, parts: Sequence[Indices], clients: Sequence[int]) -> Indices:
    """Returns the client that has each image, int64 (n,); -1 for an image that no client has."""
    holders = np.full(images, -1)
    for part, client in zip(parts, clients, strict=True):
        holders[part] = client
    return holders
