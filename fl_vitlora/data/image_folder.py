"""Folders of images by class, listed in one pass over the names of their files.

`datasets` searches a folder for more than forty patterns to find out what it holds, which takes
half a second for every thousand files. Most folders need no search: they hold a folder for each
class, or for each split with one for each class in it, and nothing but images. Those are listed
here, the same rows in the same order; what is laid out otherwise is left to the library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = {  # folders, in the library's order of splits
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
NOT_LISTED = re.compile(r"(^|/)(\.|__)")  # what the library passes over
SPLIT_WORD = re.compile(  # what it takes for the name of a split
    r"(^|[-._ 0-9/])(train|training|valid|validation|val|dev|test|testing|eval|evaluation)"
    r"($|[-._ 0-9/])"
    r"|^data/"
)


def read_image_folder(folder: Path) -> dict[str, Any] | None:
    """Lists a folder of images as `datasets.load_dataset("imagefolder")` does.

    Args:
        folder: ``CLASS/NAME.png`` or ``SPLIT/CLASS/NAME.png``, with any of `SUFFIXES`.

    Returns:
        A data set with the columns ``image`` and ``label`` for each split, its images not opened
        yet; nothing where the folder holds anything else.
    """
    root = folder.resolve()
    try:
        splits = _by_split(sorted(_names(root)))
    except OSError:
        return None
    if splits is None or len(_classes(splits["train"])) < 2:
        return None
    classes = _classes(name for names in splits.values() for name in names)
    return {split: _rows(root, names, classes) for split, names in splits.items()}


def _names(folder: Path | str, within: str = "") -> Iterator[str]:
    """Names all files of a folder, relative to it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{within}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from _names(entry.path, f"{name}/")
            else:  # what is no file, as a link to nowhere, gets a name that no image has
                yield name if entry.is_file() else f"{name}/"


def _by_split(names: Sequence[str]) -> dict[str, list[str]] | None:
    """Sorts files into splits, nothing if the library might understand them in another way.

    Example:
        >>> _by_split(["cat/1.png", "dog/1.png"])
        {'train': ['cat/1.png', 'dog/1.png']}
        >>> _by_split(["train/cat/1.png", "val/cat/1.png"])
        {'train': ['train/cat/1.png'], 'validation': ['val/cat/1.png']}
        >>> _by_split(["cat/1.png", "dog/1.png", "labels.csv"])
    """
    if not all(name.lower().endswith(SUFFIXES) for name in names):
        return None
    if any(map(NOT_LISTED.search, names)):
        return None
    depths = {name.count("/") for name in names}
    if depths == {1} and not any(map(SPLIT_WORD.search, names)):
        return {"train": list(names)}
    if depths != {2}:
        return None
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.partition("/")[0], []).append(name)
    known = [folder for folder in SPLITS if folder in folders]
    splits = {SPLITS[folder]: folders[folder] for folder in known}
    if len(splits) < len(folders) or "train" not in splits:
        return None
    return None if any(map(SPLIT_WORD.search, _classes(names))) else splits


def _classes(names: Iterable[str]) -> list[str]:
    """Names the classes of files, those of the folders that they lie in."""
    return sorted({_class(name) for name in names})


def _class(name: str) -> str:
    return name.rsplit("/", 2)[-2]


def _rows(root: Path, names: Sequence[str], classes: Sequence[str]) -> Any:
    import datasets

    number = {name: label for label, name in enumerate(classes)}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
    return datasets.Dataset.from_dict(
        {
            "image": [f"{root}/{name}" for name in names],
            "label": [number[_class(name)] for name in names],
        },
        features=datasets.Features(kinds),
    )
