"""Reads the classes of images from a file of annotations, if the images have no class folders.

For example, the data set Tiny-ImageNet stores its validation images as `val/images/NAME`, and the
classes of these images in the file `val/val_annotations.txt`. Each line of this file starts with
the name of an image, a tab and the class of the image.
"""

from __future__ import annotations

from collections.abc import Collection

from fl_vitlora.data.classes import plain_name
from fl_vitlora.data.listing import Listing
from fl_vitlora.errors import UserError

ENDING = "annotations.txt"


def annotate(listing: Listing, splits: Collection[str]) -> dict[str, str]:
    """Reads all files of annotations in the folders of splits.

    Args:
        listing: The list of all files of the data set's folder.
        splits: The names of the folders of the splits, for example "val".

    Returns:
        A dictionary from the names of images in the listing to their classes.

    Raises:
        UserError: When a file cannot be read, or when a line is not valid or does not name an
            image.
    """
    images = {file.name for file in listing.images}
    labels: dict[str, str] = {}
    for file in listing.others:
        split, _, name = file.name.partition("/")
        if split in splits and "/" not in name and name.lower().endswith(ENDING):
            labels |= _read(listing, file.name, split, images)
    return labels


def _read(listing: Listing, name: str, split: str, images: Collection[str]) -> dict[str, str]:
    """Reads one file of annotations, and returns a dictionary from names of images to classes.

    Raises:
        UserError: When the file cannot be read, or when a line is not valid or does not name an
            image.
    """
    try:
        lines = (listing.root / name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data set {listing.root}: {name} cannot be read: {error}") from None
    labels = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, *rest = line.split("\t")
        places = [f"{split}/images/{image}", f"{split}/{image}"]
        found = [place for place in places if place in images]
        if not rest or not rest[0].strip() or not found:
            raise UserError(
                f"data set {listing.root}: {name}, line {number}: expected the name of an image in "
                f"{split}, a tab and a class, got {line[:80]!r}"
            )
        labels[found[0]] = plain_name(rest[0].strip())
    return labels
