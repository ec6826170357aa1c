"""Images that a Python program hands in: a data set of torch, a list of pairs, or arrays.

A data set is a map-style data set of torch, or a list, with the items (image, label). Arrays are
passed as a tuple of two: the array of all images, (n, H, W), (n, H, W, C) or (n, C, H, W), and the
array of their n labels. An image is an image of Pillow, or an array or a tensor of bytes (uint8)
with 1 or 3 channels C. Other numbers are taken only if the setting `data.pixel_range` says which
values are black and white. A label is a whole number or a text. Classes of training and test images
are matched by name.

All images are read twice: first for their labels and checksums, and once more when they are
encrypted. If an image differs the second time, an error is raised.

Letters in shapes: n images, H × W pixels, C channels.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Part, expect_classes, match_classes, number_classes
from fl_vitlora.data.given_pixels import to_rgb
from fl_vitlora.data.identity import DIGITS, GIVEN
from fl_vitlora.data.images import Images, Indices
from fl_vitlora.data.pixels import Look, fitted, look_of
from fl_vitlora.errors import UserError, shown

DIGEST = 32  # the number of hexadecimal digits of the checksum in the run folder
UNUSED = (  # settings that are only for data sets with a name
    *("config", "revision", "train_split", "test_split", "validation_split", "layout"),
    *("image_column", "label_column", "client_column"),
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Images that a program handed in.

    Attributes:
        train: The training images.
        test: The test images; None if a share of the training images is used for testing.
        digest: A checksum of all images, labels and class names.
    """

    train: Images
    test: Images | None
    digest: str

    @property
    def told(self) -> str:
        """Returns a text about these images for the line that the user sees."""
        return f"handed in by a program, checksum {self.digest}"

    @property
    def identity(self) -> str:
        """Returns the identity of the images (`data.identity`)."""
        return f"{GIVEN} {self.digest}"


def read_given(
    train: Any, test: Any, class_names: Sequence[str] | None, config: DataConfig
) -> Given:
    """Reads images that a program hands in.

    Args:
        train: The training images: a map-style data set of torch or a sequence with the items
            (image, label), or a tuple of two arrays with all images and all labels.
        test: The test images, in the same forms; None to test on a share of the training images.
        class_names: The names of the classes, in the order of the numbers that are labels. None to
            take the attribute `classes` of the data set, or else the labels themselves as names.
        config: The settings of the data, which say how images are fitted to the model.

    Raises:
        UserError: If the images or labels cannot be read; the message names the item.
    """
    _check_settings(config)
    look, digest = look_of(config), hashlib.sha256()
    names = None if class_names is None else _read_names(class_names, "class_names")
    first = _Split(train, "train", names, look)
    part = first.part
    expect_classes(GIVEN, part)
    digest.update(repr(part.names).encode() + first.content(part.names))
    images, tested = first.images(part.labels, part.names), None
    if test is not None:
        other = _Split(test, "test", names, look)
        if (first.names is None) != (other.names is None):
            one, two = ("test", "train") if other.names is None else ("train", "test")
            raise UserError(
                f"{one}: the data set has no class names (attribute classes), but the data set "
                f"{two} has; say what the numbers mean: class_names=[...]"
            )
        labels = match_classes(GIVEN, "test", other.part, part.names)
        if not len(labels):
            raise UserError("test: expected at least one image")
        digest.update(b"test" + other.content(other.part.names))
        tested = other.images(labels, part.names)
    return Given(train=images, test=tested, digest=digest.hexdigest()[:DIGEST])


def expect_given(config: DataConfig, given: Given | None) -> Given:
    """Returns the images that a program handed in, after a check that the run began with them.

    Raises:
        UserError: If no images were handed in, or if they are not the images with which the run
            began.
    """
    if given is None:
        raise UserError(
            "data.name=given means that a Python program passes the images; call "
            "fv.run(train=..., test=...), or fv.resume(FOLDER, train=..., test=...) to continue a "
            "run"
        )
    if config.digest != given.digest:
        raise UserError(
            f"data.digest {config.digest}: expected the images with which the run began, but those "
            f"that were handed in have the checksum {given.digest}"
        )
    return given


def with_given(config: DataConfig, given: Given) -> DataConfig:
    """Returns the settings of the data for images that a program has handed in."""
    return dataclasses.replace(config, name=GIVEN, digest=given.digest)


class _Split:
    """The items of one split. All items are read once when this object is made.

    Args:
        items: The items that the program handed in.
        where: The name of the split, for messages.
        names: The names of the classes that the program gave, or None.
        look: The settings for the conversion of images.
    """

    def __init__(self, items: Any, where: str, names: tuple[str, ...] | None, look: Look) -> None:
        self._item, count = _reader(items, where)
        self._where, self._look = where, look
        self.names = names if names is not None else _names_in(items, where)
        self._digests, self._classes = list[bytes](), list[str]()
        for number in range(count):
            image, label = self._item(number)
            self._digests.append(_digest(self._rgb(image, number)))
            self._classes.append(_class_of(label, self.names, f"{where} item {number}"))

    @property
    def part(self) -> Part:
        """Returns the labels of the split, with the names of the classes."""
        names = self.names or number_classes(self._classes)
        known = {name: label for label, name in enumerate(names)}
        labels = np.array([known[name] for name in self._classes], dtype=np.int64)
        return Part(labels=labels, names=names, fetch=lambda positions: [])

    def content(self, names: Sequence[str]) -> bytes:
        """Returns a checksum of all images and the names of their classes."""
        digest = hashlib.sha256(f"{len(self._digests)} {list(names)}".encode())
        for image, name in zip(self._digests, self._classes, strict=True):
            digest.update(image + hashlib.sha256(name.encode()).digest())
        return digest.digest()

    def images(self, labels: Indices, names: tuple[str, ...]) -> Images:
        """Returns the images with labels that are positions in `names`."""
        return Images(labels=labels, class_names=names, read=self._read)

    def _read(self, positions: Indices, height: int, width: int) -> Tensor:
        pixels = np.empty((len(positions), 3, height, width), dtype=np.uint8)
        for place, number in enumerate(positions.tolist()):
            image = self._rgb(self._item(number)[0], number)
            if _digest(image) != self._digests[number]:
                raise UserError(
                    f"{self._where} item {number} is not the image that it was when it was first "
                    "read; hand in a data set without random transforms (data.augment makes "
                    "changed copies)"
                )
            small = fitted(image, height, width, self._look)
            pixels[place] = np.asarray(small).transpose(2, 0, 1)
        return torch.from_numpy(pixels)

    def _rgb(self, image: Any, number: int) -> Any:
        """Returns an image of Pillow in RGB."""
        try:
            return to_rgb(image, self._look)
        except UserError as error:
            raise UserError(f"{self._where} item {number}: {error}") from None


def _reader(items: Any, where: str) -> tuple[Callable[[int], tuple[Any, Any]], int]:
    """Returns a function that maps a position to an image and its label, and the number of images.

    Raises:
        UserError: If the items are neither arrays nor a sequence of pairs.
    """
    arrays = (np.ndarray, Tensor)
    if isinstance(items, tuple) and len(items) == 2 and isinstance(items[0], arrays):
        images, labels = items
        if images.ndim not in (3, 4) or len(images) != len(labels):
            raise UserError(
                f"{where}: expected images (n, H, W, C) or (n, C, H, W) and n labels, got the "
                f"shape {tuple(images.shape)} and {len(labels)} labels"
            )
        return lambda number: (images[number], labels[number]), len(images)
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
        raise UserError(
            f"{where}: expected a data set of torch with a length, a sequence of (image, label), "
            f"or a tuple of two arrays, got a value of the type {type(items).__name__}"
        )

    def read(number: int) -> tuple[Any, Any]:
        item = items[number]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise UserError(
                f"{where} item {number}: expected (image, label), got a value of the type "
                f"{type(item).__name__}"
            )
        return item[0], item[1]

    return read, len(items)


def _names_in(items: Any, where: str) -> tuple[str, ...] | None:
    """Returns the class names of a data set of torchvision, or of a subset of such a data set."""
    while not hasattr(items, "classes") and hasattr(items, "dataset"):
        items = items.dataset
    names = getattr(items, "classes", None)
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        return None
    return _read_names(names, f"{where}: the attribute classes")


def _read_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: expected a list of texts, got {shown(names)}")
    return tuple(names)


def _class_of(label: Any, names: tuple[str, ...] | None, where: str) -> str:
    """Returns the name of the class that a label means.

    Raises:
        UserError: If the label is neither a whole number nor a text, or if it has no name.
    """
    value = label
    if isinstance(label, np.generic | np.ndarray | Tensor) and np.prod(label.shape) == 1:
        value = label.item()
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(
            f"{where}: expected a whole number or a text as label, got {_one_line(label)}"
        )
    if names is None:
        return str(value)
    if isinstance(value, str) and value in names:
        return value
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    raise UserError(f"{where}: the label {shown(value)} is none of the {len(names)} classes")


def _one_line(value: Any) -> str:
    return " ".join(shown(value).split())


def _check_settings(config: DataConfig) -> None:
    """Checks that no setting names another data set.

    Raises:
        UserError: If a setting names another data set.
    """
    if config.name not in (DIGITS, GIVEN):
        raise UserError(
            f"data.name is {config.name}, but images were also passed in the argument train; "
            "remove either data.name or train"
        )
    for field in dataclasses.fields(config):
        if field.name in UNUSED and getattr(config, field.name) != field.default:
            raise UserError(f"data.{field.name} has no meaning for images that are handed in")
    if config.partition == "natural":
        raise UserError(
            "data.partition natural: images that are handed in do not say to which client they "
            "belong; choose another partition"
        )


def _digest(image: Any) -> bytes:
    """Returns a checksum of an RGB image."""
    return hashlib.sha256(f"{image.size} ".encode() + image.tobytes()).digest()
