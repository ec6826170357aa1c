"""Finds the split, class and client of each image from the names of its folders.

A split is a part of the data set, such as train or test. If the data set has no folders of clients,
only folders of the first level can be splits. A folder inside a split is then always a class, even
if the folder has the name of a split. The names of the image files do not matter. If the folders
can be understood in two ways, the error message names the setting that decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.annotations import annotate
from fl_vitlora.data.classes import (
    Encoded,
    Fetch,
    Part,
    count,
    labels_of,
    name_some,
    plain_name,
)
from fl_vitlora.data.images import Indices
from fl_vitlora.data.listing import File, Listing, same_file
from fl_vitlora.data.splits import SPLITS, TRAIN, meaning_of
from fl_vitlora.errors import UserError

INNER = "images"  # the name of a folder that is not a class, but only contains images


@dataclass(frozen=True)
class Item:
    """An image file with the split, class and client that its folders name.

    Attributes:
        file: The image file.
        split: The name of the split's folder; empty if the data set has no splits.
        label: The name of the class; None if the image is not in the folder of a class.
        client: The name of the client's folder; empty if the data set has no folders of clients.
    """

    file: File
    split: str
    label: str | None
    client: str = ""


def read_layout(listing: Listing, config: DataConfig) -> list[Item]:
    """Finds the split, class and client of every image.

    Args:
        listing: The list of all files of the data set's folder.
        config: The settings of the data. The setting `data.layout` decides between several ways to
            understand the folders.

    Returns:
        A list of the images, sorted by name. The list contains each file only once.

    Raises:
        UserError: When the folders can be understood in two ways, or cannot be understood.
    """
    where, files = listing.root, listing.images
    loose = [file for file in files if len(file.parts) == 1]
    heads = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    if not heads:
        raise UserError(
            f"data set {where}: {count(len(files), 'image')} and no folders; expected one folder "
            "of images for each class, whose name is the class, or a metadata.csv with the columns "
            "file_name and label"
        )
    if loose:
        raise UserError(
            f"data set {where}: expected all images in the folders of their classes, found "
            f"{count(len(loose), 'image')} outside of the class folders, such as {loose[0].name}; "
            "move or remove these images"
        )
    layout: str = config.layout
    if config.partition == "natural" and layout == "auto":
        layout = "clients"
    strict = layout == "auto"
    if layout == "auto":
        layout = _guess(where, files, heads, config)
    if layout == "clients":
        return _once(where, _by_client(where, files, heads))
    items = _sort(where, files, 0, splits=layout == "splits", strict=strict)
    if layout == "splits":
        items = _settle(where, _read_annotations(listing, items), config)
    return _once(where, items)


def to_parts(root: Path, items: Sequence[Item]) -> dict[str, Part]:
    """Creates a `Part` for each split; the classes of a part are sorted by name.

    Args:
        root: The path of the folder of the data set.
        items: The images with their splits, classes and clients.

    Returns:
        A dictionary from the name of each split to its `Part`.
    """
    clients = sorted({item.client for item in items})
    owner = {client: number for number, client in enumerate(clients)}
    parts = {}
    for split in sorted({item.split for item in items}):
        own = [item for item in items if item.split == split]
        names = [item.label for item in own if item.label is not None]
        classes = number_folders(names)
        parts[split] = Part(
            labels=labels_of(names, classes),
            names=classes,
            fetch=_fetcher(root, [item.file for item in own if item.label is not None]),
            owners=(
                np.array([owner[item.client] for item in own if item.label is not None])
                if clients != [""]
                else None
            ),
            clients=tuple(clients) if clients != [""] else (),
        )
    return parts


def number_folders(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct names of class folders, sorted as text.

    Args:
        names: The name of the class folder of each image.
    """
    return tuple(sorted(set(names)))


def without_labels(items: Sequence[Item]) -> set[str]:
    """Returns the names of the splits in which no image has a class.

    Args:
        items: The images with their splits and classes.
    """
    return {item.split for item in items} - {item.split for item in items if item.label is not None}


def _guess(where: Path, files: Sequence[File], heads: Sequence[str], config: DataConfig) -> str:
    """Returns the layout of a data set's folder, which is "splits" or "classes".

    Raises:
        UserError: When the names of the folders fit several layouts or none.
    """
    named = (config.train_split, config.test_split, config.validation_split)
    asked = {name.lower() for name in named if name}
    splits = [head for head in heads if meaning_of(head) or head.lower() in asked]
    others = [head for head in heads if head not in splits]
    if splits and others:
        raise UserError(
            f"data set {where}: the folders {name_some(splits)} could be splits, or classes like "
            f"{name_some(others)}; choose one: --set data.layout=classes if all of these folders "
            "are classes, or --set data.layout=splits to use only the splits"
        )
    if splits:
        if all(len(file.parts) == 2 for file in files):
            raise UserError(
                f"data set {where}: the folders {name_some(splits)} contain images and no class "
                "folders; if these folders are classes, use --set data.layout=classes"
            )
        return "splits"
    if _are_clients(files):
        raise UserError(
            f"data set {where}: found a folder for each of {len(heads)} clients "
            f"({name_some(heads)}), with splits in each folder; to keep these clients, use --set "
            f"data.partition=natural --clients {len(heads)}; to put the images of all clients "
            "together, use --set data.layout=clients"
        )
    if len(heads) == 1:
        inner = sorted({file.parts[1] for file in files if len(file.parts) > 2})
        hint = f"; did you mean --dataset {where / heads[0]}?" if inner and inner != [INNER] else ""
        raise UserError(
            f"data set {where}: found only one folder, {heads[0]}; expected a folder for each of "
            f"at least two classes{hint}"
        )
    return "classes"


def _are_clients(files: Sequence[File]) -> bool:
    """Returns True if there are several folders, and each folder contains splits with classes."""
    several = len({file.parts[0] for file in files}) > 1
    return several and all(len(file.parts) > 3 and meaning_of(file.parts[1]) for file in files)


def _sort(
    where: Path, files: Sequence[File], depth: int, *, splits: bool, strict: bool
) -> list[Item]:
    """Reads the split and the class of each image from its folders, starting at level `depth`.

    Args:
        where: The folder of the data set, for messages.
        files: The image files whose folders are read.
        depth: The level of the first folder to read; 0 is the first level.
        splits: True if the folder at this level is a split.
        strict: True to refuse folders inside a class folder.

    Raises:
        UserError: When `strict` is True and an image is in a folder inside its class folder.
    """
    below = depth + 1 if splits else depth
    items = []
    for file in files:
        parts = file.parts
        split = parts[depth] if splits else ""
        label = plain_name(parts[below]) if len(parts) > below + 1 else None
        inner = parts[below + 1 : -1]
        if strict and inner and inner != (INNER,):
            raise UserError(
                f"data set {where}: expected the images directly in the class folder "
                f"{'/'.join(parts[: below + 1])}, found {file.name} in a folder inside it; if all "
                "such folders belong to the class, use --set "
                f"data.layout={'splits' if splits else 'classes'}; if the first folders are "
                "clients, use --set data.partition=natural"
            )
        items.append(Item(file, split, label))
    return items


def _read_annotations(listing: Listing, items: list[Item]) -> list[Item]:
    """Sets the classes of the images in splits that have a file of annotations.

    Raises:
        UserError: When a split has a file of annotations, and the file lacks an image of the split.
    """
    labels = annotate(listing, {item.split for item in items})
    if not labels:
        return items
    annotated = {name.partition("/")[0] for name in labels}
    for item in items:
        if item.split in annotated and item.file.name not in labels:
            raise UserError(
                f"data set {listing.root}: {item.file.name} is missing in the annotations of "
                f"{item.split}"
            )
    return [replace(item, label=labels.get(item.file.name, item.label)) for item in items]


def _settle(where: Path, items: list[Item], config: DataConfig) -> list[Item]:
    """Checks for each split that either all its images or none of its images have a class.

    If the only folder of a split is named `images`, the images of this split have no class.

    Raises:
        UserError: When only some images of a split have a class, or when training images have no
            class.
    """
    trained = {item.label for item in items if _is_trained(item.split, config)}
    settled = []
    for split in dict.fromkeys(item.split for item in items):
        own = [item for item in items if item.split == split]
        if {item.label for item in own} == {INNER} and INNER not in trained:
            own = [replace(item, label=None) for item in own]
        bare = [item for item in own if item.label is None]
        refused = len(bare) < len(own) or _is_trained(split, config)
        if bare and refused and meaning_of(split):
            raise UserError(
                f"data set {where}: {count(len(bare), 'image')} of {split} not in a folder of a "
                f"class, for example {bare[0].file.name}; expected paths of the form "
                f"{split}/CLASS/NAME"
            )
        settled += own
    return settled


def _is_trained(split: str, config: DataConfig) -> bool:
    """Returns True if a split is the training split, by the settings or by its name."""
    chosen = config.train_split
    return split.lower() == chosen.lower() if chosen else meaning_of(split) == TRAIN


def _by_client(where: Path, files: Sequence[File], heads: Sequence[str]) -> list[Item]:
    """Reads folders of clients, which are CLIENT/CLASS or, with splits, CLIENT/SPLIT/CLASS.

    Raises:
        UserError: When only some clients have splits, or when an image is not in a class folder.
    """
    below = {file.parts[1] for file in files if len(file.parts) > 2}
    splits = bool(below) and all(meaning_of(name) for name in below)
    if not splits and any(meaning_of(name) for name in below):
        raise UserError(
            f"data set {where}: expected only splits or only classes in the folders of clients, "
            f"found splits and classes: {name_some(sorted(below))}"
        )
    owned: dict[str, list[File]] = {head: [] for head in heads}
    for file in files:
        owned[file.parts[0]].append(file)
    items = []
    for head in heads:
        for item in _sort(where, owned[head], 1, splits=splits, strict=True):
            if item.label is None:
                raise UserError(
                    f"data set {where}: {item.file.name} is not in a class folder; expected the "
                    f"path {head}/{'SPLIT/' if splits else ''}CLASS/NAME"
                )
            # Clients may use different names for the same split ("val" and "validation").
            items.append(replace(item, client=head, split=SPLITS.get(item.split.lower(), "")))
    return items


def _once(root: Path, items: Sequence[Item]) -> list[Item]:
    """Returns the items without repetitions, if several links lead to the same file.

    Raises:
        UserError: When links to one file are in two splits, in two classes or in the folders of two
            clients.
    """
    first: dict[tuple[int, int], Item] = {}
    kept = []
    for item in items:
        known = first.setdefault(item.file.place, item)
        if known is item or not same_file(root, known.file, item.file):
            kept.append(item)
        elif (known.split, known.label, known.client) != (item.split, item.label, item.client):
            raise UserError(
                f"data set {root}: {known.file.name} and {item.file.name} are the same file; an "
                "image must belong to only one split, class and client"
            )
    return kept


def _fetcher(root: Path, files: Sequence[File]) -> Fetch:
    """Returns a function that takes positions and returns the image files at these positions."""

    def fetch(positions: Indices) -> list[Encoded]:
        chosen = [files[position] for position in positions.tolist()]
        return [Encoded(name=str(root / f.name), path=root / f.name) for f in chosen]

    return fetch
