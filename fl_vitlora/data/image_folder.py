"""Folders of images by class, for each split and for each client, from the names of folders alone.

The rule has one sentence: splits are recognised among the folders of the first level only, and
below them every folder is a class, whatever its name is. Names of files decide nothing. A folder
that could be understood in two ways is refused with the setting that says how it is meant.
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

INNER = "images"  # the folder within a class, or within a split without classes, that adds nothing


@dataclass(frozen=True)
class Item:
    """An image and what the folders say about it.

    Attributes:
        file: The image.
        split: The folder of its split; empty where there are none.
        label: The name of its class; None where it lies in no class folder.
        client: The folder of its client; empty where there are none.
    """

    file: File
    split: str
    label: str | None
    client: str = ""


def read_layout(listing: Listing, config: DataConfig) -> list[Item]:
    """Finds split, class and client of every image.

    Args:
        listing: All files of the folder.
        config: `layout` says how the folder is meant where that is not clear.

    Returns:
        The images, sorted by name, each file once.

    Raises:
        UserError: When the folder can be understood in two ways or in none.
    """
    where, files = listing.root, listing.images
    loose = [file for file in files if len(file.parts) == 1]
    heads = sorted({file.parts[0] for file in files if len(file.parts) > 1})
    if not heads:
        raise UserError(
            f"data set {where}: {count(len(files), 'image')} and no folders; expected folders of "
            "images named after their classes, or a metadata.csv with the columns file_name "
            "and label"
        )
    if loose:
        raise UserError(
            f"data set {where}: {count(len(loose), 'image')} outside of the class folders, such as "
            f"{loose[0].name}; move or remove them"
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
    """Makes a part of each split, its classes in the order of their names."""
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
        )
    return parts


def number_folders(names: Iterable[str]) -> tuple[str, ...]:
    """Orders the names of class folders, as texts."""
    return tuple(sorted(set(names)))


def without_labels(items: Sequence[Item]) -> set[str]:
    """Finds the splits of which no image has a class."""
    return {item.split for item in items} - {item.split for item in items if item.label is not None}


def _guess(where: Path, files: Sequence[File], heads: Sequence[str], config: DataConfig) -> str:
    """Finds out how a folder is laid out, where only one way makes sense."""
    asked = {name.lower() for name in (config.train_split, config.test_split) if name}
    splits = [head for head in heads if meaning_of(head) or head.lower() in asked]
    others = [head for head in heads if head not in splits]
    if splits and others:
        raise UserError(
            f"data set {where}: {name_some(splits)} could be splits or classes beside "
            f"{name_some(others)}; say which: --set data.layout=classes if all of them are "
            "classes, --set data.layout=splits to use the splits alone"
        )
    if splits:
        if all(len(file.parts) == 2 for file in files):
            raise UserError(
                f"data set {where}: {name_some(splits)} hold images and no class folders; if they "
                "are classes: --set data.layout=classes"
            )
        return "splits"
    if _are_clients(files):
        raise UserError(
            f"data set {where}: found a folder for each of {len(heads)} clients "
            f"({name_some(heads)}), with splits below; keep them as clients: --set "
            f"data.partition=natural --clients {len(heads)}, or pool them: --set "
            "data.layout=clients"
        )
    if len(heads) == 1:
        inner = sorted({file.parts[1] for file in files if len(file.parts) > 2})
        hint = f"; did you mean --dataset {where / heads[0]}?" if inner and inner != [INNER] else ""
        raise UserError(
            f"data set {where}: found one folder only, {heads[0]}; expected a folder for each of "
            f"at least two classes{hint}"
        )
    return "classes"


def _are_clients(files: Sequence[File]) -> bool:
    """Tells whether all images lie in splits below the first folder."""
    several = len({file.parts[0] for file in files}) > 1
    return several and all(len(file.parts) > 3 and meaning_of(file.parts[1]) for file in files)


def _sort(
    where: Path, files: Sequence[File], depth: int, *, splits: bool, strict: bool
) -> list[Item]:
    """Reads split and class off the folders from a depth on."""
    below = depth + 1 if splits else depth
    items = []
    for file in files:
        parts = file.parts
        split = parts[depth] if splits else ""
        label = plain_name(parts[below]) if len(parts) > below + 1 else None
        inner = parts[below + 1 : -1]
        if strict and inner and inner != (INNER,):
            raise UserError(
                f"data set {where}: expected images right in the class folder "
                f"{'/'.join(parts[: below + 1])}, found {file.name}; if all folders below a class "
                f"belong to it: --set data.layout={'splits' if splits else 'classes'}; if the "
                "first folders are clients: --set data.partition=natural"
            )
        items.append(Item(file, split, label))
    return items


def _read_annotations(listing: Listing, items: list[Item]) -> list[Item]:
    """Reads the classes of a split from its file of annotations, if it has one."""
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
    """Refuses splits that mix images with and without a class, and finds those without any."""
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
                f"data set {where}: {count(len(bare), 'image')} of {split} in no class folder, "
                f"such as {bare[0].file.name}; expected {split}/CLASS/NAME"
            )
        settled += own
    return settled


def _is_trained(split: str, config: DataConfig) -> bool:
    asked = config.train_split
    return split.lower() == asked.lower() if asked else meaning_of(split) == TRAIN


def _by_client(where: Path, files: Sequence[File], heads: Sequence[str]) -> list[Item]:
    """Reads client, then split if all clients have them, then class."""
    below = {file.parts[1] for file in files if len(file.parts) > 2}
    splits = bool(below) and all(meaning_of(name) for name in below)
    if not splits and any(meaning_of(name) for name in below):
        raise UserError(
            f"data set {where}: expected all clients' folders to hold splits, or classes, found "
            f"{name_some(sorted(below))}"
        )
    items = []
    for head in heads:
        own = [file for file in files if file.parts[0] == head]
        for item in _sort(where, own, 1, splits=splits, strict=True):
            if item.label is None:
                raise UserError(
                    f"data set {where}: {item.file.name} lies in no class folder; expected "
                    f"{head}/{'SPLIT/' if splits else ''}CLASS/NAME"
                )
            # Clients may spell their splits differently; all mean the same split.
            items.append(replace(item, client=head, split=SPLITS.get(item.split.lower(), "")))
    return items


def _once(root: Path, items: Sequence[Item]) -> list[Item]:
    """Keeps each file once, and refuses a file that lies in two splits or classes."""
    first: dict[tuple[int, int], Item] = {}
    kept = []
    for item in items:
        known = first.setdefault(item.file.place, item)
        if known is item or not same_file(root, known.file, item.file):
            kept.append(item)
        elif (known.split, known.label, known.client) != (item.split, item.label, item.client):
            raise UserError(
                f"data set {root}: {known.file.name} and {item.file.name} are the same file; an "
                "image belongs to one split and one class"
            )
    return kept


def _fetcher(root: Path, files: Sequence[File]) -> Fetch:
    def fetch(positions: Indices) -> list[Encoded]:
        chosen = [files[position] for position in positions.tolist()]
        return [Encoded(name=str(root / f.name), path=root / f.name) for f in chosen]

    return fetch
