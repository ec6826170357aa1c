"""Where images come from: the bundled digits, a folder, or the Hugging Face hub.

Every source ends in the same value, `Images`, for training and for testing; and in one line that
says what was found, what of it is used, and where the test images come from.

n images of H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Part, count, expect_classes, match_classes, name_some
from fl_vitlora.data.images import Images as Images  # noqa: PLC0414 - for all who use a source
from fl_vitlora.data.images import Indices as Indices  # noqa: PLC0414
from fl_vitlora.data.local_folder import Found, from_rows, open_folder
from fl_vitlora.data.pixels import ROWS_AT_ONCE as ROWS_AT_ONCE  # noqa: PLC0414
from fl_vitlora.data.pixels import look_of, read_pixels, tell_depth
from fl_vitlora.errors import UserError

SPLIT_SEED = 0  # the test images of a source are the same in every run


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of an experiment.

    Attributes:
        train: Training images.
        test: Test images.
        told: One line that says what was found and what of it is used.
    """

    train: Images
    test: Images
    told: str


def load(config: DataConfig) -> tuple[Images, Images]:
    """Loads training and test images; see `load_source`."""
    source = load_source(config)
    return source.train, source.test


def load_source(config: DataConfig) -> Source:
    """Loads training and test images.

    Args:
        config: Which source.

    Returns:
        The images; a fixed, stratified share is held out for testing where the source has no test
        split of its own.

    Raises:
        UserError: When the source is not found or not understood.
    """
    notes: tuple[str, ...] = ()
    warning: str | None = None
    if config.name == "digits":
        train, test = _hold_out(_digits(), config.test_fraction)
        told = _held_out(config)
    else:
        train, test, told, notes, warning = _found(config)
    if config.partition == "natural" and train.owners is None:
        raise UserError(
            f"data.partition natural: {config.name} has no folder for each client; expected "
            "CLIENT/CLASS/NAME or CLIENT/SPLIT/CLASS/NAME"
        )
    train, test = _limit(train, config.limit), _limit(test, config.limit)
    return Source(train=train, test=test, told=_tell(train, test, told, notes, warning))


def _digits() -> Images:
    """Reads the 1,797 handwritten digits of UCI that scikit-learn bundles (8 × 8, 17 levels)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).mul(255 / 16).round()

    def read(positions: Indices, height: int, width: int) -> Tensor:
        small = grey[torch.from_numpy(positions)].unsqueeze(1)
        large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")
        return large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()

    names = tuple(str(name) for name in bunch.target_names)
    return Images(labels=bunch.target.astype(np.int64), class_names=names, read=read)


def _hold_out(images: Images, fraction: float) -> tuple[Images, Images]:
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(
            np.arange(len(images)),
            test_size=fraction,
            stratify=images.labels,
            random_state=SPLIT_SEED,
        )
    except ValueError as error:
        raise UserError(f"data.test_fraction {fraction} cannot be held out: {error}") from None
    return images.select(train), images.select(test)


def _limit(images: Images, limit: int | None) -> Images:
    """Keeps a fixed random selection, so that no class is lost to the order of the source."""
    if limit is None or limit >= len(images):
        return images
    return images.select(np.random.default_rng(SPLIT_SEED).permutation(len(images))[:limit])


def _found(config: DataConfig) -> tuple[Images, Images, str, tuple[str, ...], str | None]:
    """Opens a folder or a data set of the hub, and numbers the classes of both splits alike."""
    found = open_folder(config) if Path(config.name).exists() else _from_hub(config)
    choice = found.choice
    part = found.part(choice.train)
    expect_classes(config.name, part)
    unused = [f"split {name} ({count(found.sizes[name], 'image')})" for name in choice.unused]
    depth = tell_depth(part, look_of(config))
    notes = (*unused, *found.notes)
    train = _images(part, part.labels, part.names, config)
    if choice.test is None:
        return *_hold_out(train, config.test_fraction), _held_out(config), notes, depth
    other = found.part(choice.test)
    labels = match_classes(config.name, choice.test, other, part.names)
    if not len(labels):
        raise UserError(f"data set {config.name}: the split {choice.test} holds no images")
    test = _images(other, labels, part.names, config)
    return train, test, f"the split {choice.test}", notes, depth


def _from_hub(config: DataConfig) -> Found:
    from fl_vitlora.data.hub_datasets import hub_folders, open_hub

    return from_rows(config.name, open_hub(config), config, hub_folders())


def _images(part: Part, labels: Indices, names: tuple[str, ...], config: DataConfig) -> Images:
    look = look_of(config)
    return Images(
        labels=labels,
        class_names=names,
        read=lambda positions, *size: read_pixels(part, look, positions, *size),
        owners=part.owners,
    )


def _held_out(config: DataConfig) -> str:
    return f"{100 * config.test_fraction:g} % held out of the training images"


def _tell(
    train: Images, test: Images, origin: str, notes: tuple[str, ...], warning: str | None
) -> str:
    told = (
        f"data: {count(len(train), 'image')} for training, {len(test):,} for testing ({origin}), "
        f"{len(train.class_names)} classes: {name_some(train.class_names)}"
    )
    told += f"; not used: {', '.join(notes)}" if notes else ""
    told += f"; {warning}" if warning else ""
    return "".join(c if c.isprintable() else " " for c in told)  # names may hold anything
