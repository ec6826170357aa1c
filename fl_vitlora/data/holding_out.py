"""Draws stratified parts of images, for validation or for evaluations with fewer images.

A part is stratified if every class has the same share of the part as of all images, up to rounding.

Letters in shapes: n images, L classes.
"""

from __future__ import annotations

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.images import Indices
from fl_vitlora.errors import UserError
from fl_vitlora.rng import derive_seed

COMMON_SEED = 0  # common validation images are the same in every run, like the test images


def has_validation(config: DataConfig) -> bool:
    """Returns True if a run has validation images, from a held-out share or from a split.

    Args:
        config: The settings of the data: `validation_fraction` and `validation_split`.
    """
    return config.validation_fraction > 0 or config.validation_split is not None


def check_validation(config: DataConfig) -> None:
    """Checks that validation images come from a split or from held-out images, not from both.

    Raises:
        UserError: When the settings name a validation split and also a share to hold out.
    """
    if config.validation_split and config.validation_fraction:
        raise UserError(
            f"data.validation_split {config.validation_split} with data.validation_fraction "
            f"{config.validation_fraction:g}: expected only one of them; set "
            "data.validation_fraction=0 to use the split"
        )


def hold_out(labels: Indices, config: DataConfig) -> tuple[Indices, list[Indices]]:
    """Holds out a share of all training images for validation.

    Args:
        labels: The labels of all training images, int64 (n,).
        config: The settings of the data. Only `validation_fraction` is used.

    Returns:
        A pair: the positions of the remaining training images, and a list with one array, which has
        the positions of the validation images.
    """
    count = _count(len(labels), config)
    seed = derive_seed(COMMON_SEED, "validation")
    held = stratified(labels, count, seed, keep_one=True)
    return np.delete(np.arange(len(labels)), held), [held]


def hold_out_of_each(
    labels: Indices, parts: list[Indices], config: DataConfig, seed: int
) -> tuple[list[Indices], list[Indices]]:
    """Holds out a share of every client's training images for validation.

    Args:
        labels: The labels of all training images, int64 (n,).
        parts: A list with an array for each client: the positions of the client's images.
        config: The settings of the data: `validation_fraction` and `min_samples`.
        seed: The run's seed, which decides which images are held out.

    Returns:
        Two lists with an array for each client. The first has the positions of the remaining
        training images, and the second has the positions of the validation images. Every client has
        at least one validation image.

    Raises:
        UserError: When a client would train on fewer than `min_samples` images.
    """
    trained, validation = [], []
    for client, part in enumerate(parts):
        count = _count(len(part), config)
        if len(part) - count < config.min_samples:
            raise UserError(
                f"data.validation_fraction {config.validation_fraction:g}: a client has "
                f"{len(part)} images; without {count} images for validation, the client has fewer "
                f"than data.min_samples = {config.min_samples}; use fewer clients or a smaller "
                "fraction"
            )
        own = derive_seed(seed, "validation", client)
        held = stratified(labels[part], count, own, keep_one=True)
        trained.append(np.delete(part, held))
        validation.append(part[held])
    return trained, validation


def stratified(labels: Indices, count: int, seed: int, *, keep_one: bool = False) -> Indices:
    """Draws images at random, with the same share of every class.

    Class l with n_l images gets ⌊count · n_l / n⌋ of the drawn images. The classes with the largest
    remainders get one image more, until `count` images are drawn. Classes with equal remainders are
    ordered at random.

    Args:
        labels: The labels of the images, int64 (n,).
        count: The number of images to draw; at most n are drawn.
        seed: The seed of the draw. The same seed draws the same images.
        keep_one: True to give the additional images first to classes of which some images would
            then remain.

    Returns:
        The positions of the drawn images in ascending order, int64.

    Example:
        >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
        >>> labels[stratified(labels, 3, seed=0)]
        array([0, 0, 1])
    """
    count, draw = min(count, len(labels)), np.random.default_rng(seed)
    _, of_image, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    taken, rest = np.divmod(count * sizes, len(labels))
    last = keep_one & (sizes <= taken + 1)
    order = np.lexsort((draw.random(len(sizes)), -rest, last))
    taken[order[: count - taken.sum()]] += 1
    shuffled = draw.permutation(len(labels))
    by_class = shuffled[np.argsort(of_image[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(by_class[rank < np.repeat(taken, sizes)])


def _count(images: int, config: DataConfig) -> int:
    """Returns the number of images to hold out of `images` images, which is at least one."""
    return max(1, round(config.validation_fraction * images))
