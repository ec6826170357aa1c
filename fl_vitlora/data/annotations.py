"""The classes of images that lie in no class folder, from a file of annotations beside them.

Tiny-ImageNet keeps its validation images so: `val/images/NAME` and `val/val_annotations.txt`, a
line for each image that begins with the image's name, a tab and its class.
"""

from __future__ import annotations

from collections.abc import Collection

from fl_vitlora.data.classes import plain_name
from fl_vitlora.data.listing import Listing
from fl_vitlora.errors import UserError

ENDING = "annotations.txt"


def annotate(listing: Listing, splits: Collection[str]) -> dict[str, str]:
    """Reads all annotations of splits.

    Args:
        listing: All files of the folder.
        splits: The folders of splits, which may hold annotations.

    Returns:
        The class of each image, by the image's name in the listing.

    Raises:
        UserError: When a line cannot be read or names no image.
    """
    images = {file.name for file in listing.images}
    labels: dict[str, str] = {}
    for file in listing.others:
        split, _, name = file.name.partition("/")
        if split in splits and "/" not in name and name.lower().endswith(ENDING):
            labels |= _read(listing, file.name, split, images)
    return labels


def _read(listing: Listing, name: str, split: str, images: Collection[str]) -> dict[str, str]:
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
                f"data set {listing.root}: {name}, line {number}: expected the name of an image of "
                f"{split}, a tab and a class, got {line[:80]!r}"
            )
        labels[found[0]] = plain_name(rest[0].strip())
    return labels
