"""The class names of a data set, and the numbers (labels) of its classes.

A split is a part of a data set, for training or testing. The training split decides the number of
each class. In all other splits, a class with the same name gets the same number.

Letters in shapes: n images.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_vitlora.data.images import Indices, Name
from fl_vitlora.errors import UserError, shown

MOST_NAMED = 5


@dataclass(frozen=True)
class Encoded:
    """An image that is not decoded yet, as bytes or as the path of a file.

    Attributes:
        name: The name of the image, for messages.
        content: The encoded bytes of the image; None if the bytes are in a file.
        path: The path of the file with the image; None if `content` has the bytes.
    """

    name: str
    content: bytes | None = None
    path: Path | None = None


Fetch = Callable[[Indices], Sequence[Encoded]]  # maps positions to the images at these positions


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split of a data set, with the labels that the data set itself uses.

    Attributes:
        labels: The label of each image, int64 (n,), from 0.
        names: The name of each class, in the order of the labels.
        fetch: A function that takes positions and returns the encoded images at these positions.
        mode: The colour mode (of the library Pillow) that the data set states for its images; None
            if the data set states no mode.
        owners: The number of the client that owns each image, int64 (n,); None if the data set does
            not name clients.
        clients: The name of each client, in the order of the numbers in `owners`.
    """

    labels: Indices
    names: tuple[str, ...]
    fetch: Fetch
    mode: str | None = None
    owners: Indices | None = None
    clients: tuple[Name, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def plain_name(name: str) -> str:
    r"""Returns a class name in the form in which names are compared (Unicode NFC).

    Unicode can represent an accented letter in two ways that look the same: as one character, or as
    a letter and an accent. Different file systems use different ways.

    Args:
        name: The class name as it is written in a file or in the name of a folder.

    Example:
        >>> plain_name("cafe\u0301") == "caf\u00e9"
        True
    """
    return unicodedata.normalize("NFC", name).encode(errors="replace").decode()


def number_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct class names, sorted by value if all names are numbers, else as text.

    Args:
        names: The class name of each image.

    Example:
        >>> number_classes(["10", "9"]), number_classes(["dog", "cat", "dog"])
        (('9', '10'), ('cat', 'dog'))
    """
    distinct = set(names)
    numbers = all(name.removeprefix("-").isdecimal() for name in distinct)
    return tuple(sorted(distinct, key=(lambda name: (int(name), name)) if numbers else None))


def labels_of(names: Sequence[str], classes: Sequence[str]) -> Indices:
    """Returns the label of each image, int64 (n,).

    Args:
        names: The class name of each image.
        classes: All class names, in the order of their labels.
    """
    number = {name: label for label, name in enumerate(classes)}
    return np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))


def match_classes(where: str, split: str, part: Part, classes: Sequence[str]) -> Indices:
    """Returns the labels of a split, converted to the numbers that the training split uses.

    Args:
        where: The name of the data set, for messages.
        split: The name of the split, for messages.
        part: The split, with its own numbers of the classes.
        classes: The class names in the order of the training split's labels.

    Returns:
        The labels as positions in `classes`, int64 (n,).

    Raises:
        UserError: When an image has a class that does not exist in the training split.
    """
    number = {name: label for label, name in enumerate(classes)}
    used = [part.names[label] for label in np.unique(part.labels)]
    missing = [name for name in used if name not in number]
    if missing:
        near = difflib.get_close_matches(missing[0].lower(), {n.lower(): n for n in number}, n=1)
        same = [name for name in number if near and name.lower() == near[0]]
        hint = f"; did you mean {same[0]!r}?" if same else ""
        few = ", ".join(map(shown, missing[:MOST_NAMED]))
        raise UserError(
            f"data set {where}: the split {split} has classes that the training split does not "
            f"have: {few}{hint} (training: {name_some(classes)})"
        )
    mapped = np.array([number.get(name, -1) for name in part.names], dtype=np.int64)
    return mapped[part.labels]


def expect_classes(where: str, part: Part, fewest: int = 2) -> None:
    """Checks that the training images have enough classes, and that the names of classes differ.

    Args:
        where: The name of the data set, for messages.
        part: The training split with its labels.
        fewest: The smallest number of classes: 2, or 1 if other owners have the other classes.

    Raises:
        UserError: When two classes have the same name, or fewer than `fewest` classes have images.
    """
    often, times = Counter(part.names).most_common(1)[0] if part.names else ("", 0)
    if times > 1:
        raise UserError(f"data set {where}: two classes have the same name, {shown(often)}")
    used = np.unique(part.labels)
    if len(used) < fewest:
        only = f"all of class {part.names[used[0]]!r}" if len(used) else "none"
        raise UserError(
            f"data set {where}: expected training images of at least two classes, found "
            f"{len(part)} images, {only}"
        )


def name_some(names: Sequence[str]) -> str:
    """Returns a text with the first few names, and the number of the remaining names.

    Args:
        names: The names to list.

    Example:
        >>> name_some(["a", "b"]), name_some(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    few = ", ".join(names[:MOST_NAMED])
    return few if len(names) <= MOST_NAMED else f"{few} and {len(names) - MOST_NAMED} more"


def printable(line: str) -> str:
    """Returns a text in which each unprintable character is replaced by a space.

    Names that a data set states may contain any character.

    Args:
        line: The text.
    """
    return "".join(c if c.isprintable() else " " for c in line)


def count(number: int, what: str) -> str:
    """Returns a number with a noun, in the plural unless the number is 1.

    Args:
        number: The number to write before the noun.
        what: The noun in the singular, for example "image".

    Example:
        >>> count(1, "image"), count(12_000, "image")
        ('1 image', '12,000 images')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
