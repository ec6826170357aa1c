"""Loads the images of the digits of this package, of a local folder, or of a data set of the hub.

Every source of images gives the training images and the test images, and one line of text. The line
says which images were found, which images are used, and where the test images come from.

Letters in shapes: n images, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Part, count, expect_classes, match_classes, name_some, printable
from fl_vitlora.data.clients import match_owners
from fl_vitlora.data.given import Given, expect_given
from fl_vitlora.data.identity import DIGITS, GIVEN
from fl_vitlora.data.images import Images as Images  # noqa: PLC0414 - for all who use a source
from fl_vitlora.data.images import Indices as Indices  # noqa: PLC0414
from fl_vitlora.data.local_folder import Found, from_rows, open_folder
from fl_vitlora.data.pixels import ROWS_AT_ONCE as ROWS_AT_ONCE  # noqa: PLC0414
from fl_vitlora.data.pixels import look_of, read_pixels, tell_depth
from fl_vitlora.errors import UserError

SPLIT_SEED = 0  # a fixed seed, so that the test images of a source are the same in every run


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of an experiment.

    Attributes:
        train: The images of all clients for training.
        test: The images for testing.
        validation: The images of the validation split; None if there is no validation split.
        told: One line of text that says which images were found and which images are used.
        identity: The identity of the data set (`data.identity`); None if the data set has no
            identity.
        test_split: The name of the split for testing; None if there is none.
    """

    train: Images
    test: Images
    told: str
    validation: Images | None = None
    identity: str | None = None
    test_split: str | None = None


def load(config: DataConfig) -> tuple[Images, Images]:
    """Loads the training images and the test images with `load_source`.

    Args:
        config: The settings of the data.

    Returns:
        The training images and the test images.
    """
    source = load_source(config)
    return source.train, source.test


def load_source(
    config: DataConfig, given: Given | None = None, *, needs_test: bool = True, fewest: int = 2
) -> Source:
    """Loads the images of the data set that the settings name.

    Args:
        config: The settings of the data, which name the data set.
        given: The images that a Python program handed in; None without such images.
        needs_test: True to hold out a share of the training images if the data set has no test
            split; False to return no test images in this case.
        fewest: The smallest number of classes of the training images.

    Returns:
        The images and a line of text about the images. If the data set has no test split, a share
        of its training images is held out for testing. The held-out images are the same in every
        run, and the share is the same for every class.

    Raises:
        UserError: When the data set does not exist, or when the program cannot interpret its files.
    """
    notes, warning = tuple[str, ...](), None
    identity: str | None
    validation: Images | None = None
    test_split: str | None = None
    if config.name == DIGITS:
        train, test = _divided_digits(config)
        told, identity = _held_out(config), DIGITS
    elif config.name == GIVEN:
        train, test, told, identity = _handed_in(expect_given(config, given), config)
    else:
        found = open_folder(config) if Path(config.name).exists() else _from_hub(config)
        held = config.test_fraction if needs_test else None
        train, test, validation, told, notes, warning = _images_of(found, config, held, fewest)
        identity, test_split = found.identity, found.choice.test
    if train.owners is None:
        _expect_no_owners(config)
    train, test = _limit(train, config.limit), _limit(test, config.limit)
    if validation is not None:
        validation = _limit(validation, config.limit)
        split = f"the split {config.validation_split}"
        told += f"), {len(validation):,} for validation ({split}"
    told = _tell(train, test, told, notes, warning)
    return Source(
        train=train,
        test=test,
        told=told,
        validation=validation,
        identity=identity,
        test_split=test_split,
    )


def _expect_no_owners(config: DataConfig) -> None:
    """Checks that the settings do not need the owners of images, if the images have no owners.

    Raises:
        UserError: When a setting needs the owners of the training images.
    """
    if config.client_column:
        raise UserError(
            f"data.client_column {config.client_column}: expected this column in the training "
            f"split of {config.name}, which has no such column"
        )
    if config.partition == "natural":
        raise UserError(
            f"data.partition natural: {config.name} does not have a folder for each client; "
            "expected paths CLIENT/CLASS/NAME or CLIENT/SPLIT/CLASS/NAME, or a column that names "
            "the client of each image: --set data.client_column=NAME"
        )


def _handed_in(handed: Given, config: DataConfig) -> tuple[Images, Images, str, str | None]:
    """Returns the images of a program for training and testing, a text on them, and an identity."""
    if handed.test is not None:
        return handed.train, handed.test, handed.told, handed.identity
    train, test = _hold_out(handed.train, config.test_fraction)
    return train, test, f"{handed.told}, {_held_out(config)}", handed.identity


def _divided_digits(config: DataConfig) -> tuple[Images, Images]:
    """Returns the digits for training and for testing.

    Raises:
        UserError: When a split for validation is named, because the digits have no splits.
    """
    if config.validation_split:
        raise UserError(
            f"data.validation_split {config.validation_split}: the digits have no splits; hold "
            "out a share instead, for example --set data.validation_fraction=0.1"
        )
    return _hold_out(_digits(), config.test_fraction)


def _digits() -> Images:
    """Returns UCI's 1,797 handwritten digits from scikit-learn (8 × 8 pixels, 17 grey levels)."""
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
    """Divides images into training and test images, with the same share of every class."""
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(
            np.arange(len(images)),
            test_size=fraction,
            stratify=images.labels,
            random_state=SPLIT_SEED,
        )
    except ValueError as error:
        raise UserError(
            f"data.test_fraction {fraction}: this share of the images cannot be used for testing: "
            f"{error}"
        ) from None
    return images.select(train), images.select(test)


def _limit(images: Images, limit: int | None) -> Images:
    """Keeps at most `limit` images, which are drawn at random with a fixed seed.

    The images are drawn at random, because the first images of a source may all have the same
    class.
    """
    if limit is None or limit >= len(images):
        return images
    return images.select(np.random.default_rng(SPLIT_SEED).permutation(len(images))[:limit])


def _images_of(
    found: Found, config: DataConfig, held: float | None, fewest: int
) -> tuple[Images, Images, Images | None, str, tuple[str, ...], str | None]:
    """Creates the images of a folder or of a data set of the hub.

    A class gets the same label in all splits. If there is no test split, the share `held` of the
    training images is used for testing. If `held` is None, there are no test images.

    Returns:
        Six values: the training images, the test images, the validation images or None, a text
        about the origin of the test images, notes about unused files and splits, and a note about
        the bit depth or None.
    """
    choice = found.choice
    part = found.part(choice.train)
    expect_classes(config.name, part, fewest)
    unused = [f"split {name} ({count(found.sizes[name], 'image')})" for name in choice.unused]
    depth = tell_depth(part, look_of(config))
    notes = (*unused, *found.notes)
    train = _images(part, part.labels, part.names, config)
    validation = _other_split(found, choice.validation, part, config) if choice.validation else None
    if choice.test is None and held is None:
        return train, train.select(np.arange(0)), validation, "no test split", notes, depth
    if choice.test is None:
        train, test = _hold_out(train, config.test_fraction)
        return train, test, validation, _held_out(config), notes, depth
    test = _other_split(found, choice.test, part, config)
    return train, test, validation, f"the split {choice.test}", notes, depth


def _other_split(found: Found, split: str, train: Part, config: DataConfig) -> Images:
    """Creates the images of another split, with the classes and clients of the training split.

    Raises:
        UserError: When the split has no image, or when it has an image of a class without training
            images.
    """
    part = found.part(split)
    labels = match_classes(config.name, split, part, train.names)
    if not len(labels):
        use = "test" if split == found.choice.test else "validation"
        raise UserError(
            f"data set {config.name}: the split {split} is used for {use} images, but it has none"
        )
    owners = match_owners(config.name, split, part, train.clients)
    return _images(replace(part, owners=owners, clients=train.clients), labels, train.names, config)


def _from_hub(config: DataConfig) -> Found:
    """Opens a data set of the hub. The library is imported here, because the import is slow."""
    from fl_vitlora.data.hub_datasets import hub_folders, open_hub

    return from_rows(config.name, open_hub(config), config, hub_folders())


def _images(part: Part, labels: Indices, names: tuple[str, ...], config: DataConfig) -> Images:
    """Creates the `Images` of one split."""
    look = look_of(config)
    return Images(
        labels=labels,
        class_names=names,
        read=lambda positions, *size: read_pixels(part, look, positions, *size),
        owners=part.owners,
        clients=part.clients,
        names=lambda positions: [stored.name for stored in part.fetch(positions)],
    )


def _held_out(config: DataConfig) -> str:
    """Returns the text which says that the test images are a share of the training images."""
    return f"{100 * config.test_fraction:g} % held out of the training images"


def _tell(
    train: Images, test: Images, origin: str, notes: tuple[str, ...], warning: str | None
) -> str:
    """Returns the line of text about the images; unprintable characters become spaces."""
    line = (
        f"data: {count(len(train), 'image')} for training, {len(test):,} for testing ({origin}), "
        f"{len(train.class_names)} classes: {name_some(train.class_names)}"
    )
    line += f"; not used: {', '.join(notes)}" if notes else ""
    line += f"; {warning}" if warning else ""
    return printable(line)
