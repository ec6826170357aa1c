"""Classes are known by their names: labels of every split are numbered as in the training split.

n images.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fl_vitlora.data.images import Indices
from fl_vitlora.errors import UserError, shown

MOST_NAMED = 5


@dataclass(frozen=True)
class Encoded:
    """An image as it is stored: its bytes, or the file that holds them.

    Attributes:
        name: For messages.
        content: Its bytes.
        path: Its file, where there are no bytes.
    """

    name: str
    content: bytes | None = None
    path: Path | None = None


Fetch = Callable[[Indices], Sequence[Encoded]]  # takes positions


@dataclass(frozen=True, kw_only=True)
class Part:
    """One split, as its source numbers the classes.

    Attributes:
        labels: int64 (n,), from 0.
        names: The name of each label.
        fetch: Takes positions, and returns the images there as they are stored.
        mode: Pillow's mode to which the source says that its images are converted.
        owners: int64 (n,), the client that holds each image, where the source says so.
    """

    labels: Indices
    names: tuple[str, ...]
    fetch: Fetch
    mode: str | None = None
    owners: Indices | None = None

    def __len__(self) -> int:
        return len(self.labels)


def plain_name(name: str) -> str:
    r"""Writes a class name in the one way in which names are compared.

    Accents may be stored in two ways that look the same; file systems differ in it.

    Example:
        >>> plain_name("cafe\u0301") == "caf\u00e9"
        True
    """
    return unicodedata.normalize("NFC", name).encode(errors="replace").decode()


def number_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Orders the names of classes: as numbers if all of them are numbers, else as texts.

    Example:
        >>> number_classes(["10", "9"]), number_classes(["dog", "cat", "dog"])
        (('9', '10'), ('cat', 'dog'))
    """
    distinct = set(names)
    numbers = all(name.removeprefix("-").isdecimal() for name in distinct)
    return tuple(sorted(distinct, key=(lambda name: (int(name), name)) if numbers else None))


def labels_of(names: Sequence[str], classes: Sequence[str]) -> Indices:
    """Numbers the class of each image, int64 (n,)."""
    number = {name: label for label, name in enumerate(classes)}
    return np.fromiter((number[name] for name in names), dtype=np.int64, count=len(names))


def match_classes(where: str, split: str, part: Part, classes: Sequence[str]) -> Indices:
    """Numbers the labels of a split as the training split does, by the names of the classes.

    Args:
        where: The data set, for messages.
        split: The split's name, for messages.
        part: The split, with its own numbers.
        classes: The names of the classes, as the training split numbers them.

    Returns:
        int64 (n,).

    Raises:
        UserError: When a class of an image is unknown to the training split.
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
            f"data set {where}: the {split} split holds classes that the training split lacks: "
            f"{few}{hint} (training: {name_some(classes)})"
        )
    mapped = np.array([number.get(name, -1) for name in part.names], dtype=np.int64)
    return mapped[part.labels]


def expect_classes(where: str, part: Part) -> None:
    """Refuses training images that are of fewer than two classes, or twice named classes."""
    often, times = Counter(part.names).most_common(1)[0] if part.names else ("", 0)
    if times > 1:
        raise UserError(f"data set {where}: two classes have the same name, {shown(often)}")
    used = np.unique(part.labels)
    if len(used) < 2:
        only = f"all of class {part.names[used[0]]!r}" if len(used) else "none"
        raise UserError(
            f"data set {where}: expected training images of at least two classes, found "
            f"{len(part)} images, {only}"
        )


def name_some(names: Sequence[str]) -> str:
    """Names the first few of many.

    Example:
        >>> name_some(["a", "b"]), name_some(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 more')
    """
    few = ", ".join(names[:MOST_NAMED])
    return few if len(names) <= MOST_NAMED else f"{few} and {len(names) - MOST_NAMED} more"


def count(number: int, what: str) -> str:
    """Counts things.

    Example:
        >>> count(1, "image"), count(12_000, "image")
        ('1 image', '12,000 images')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
