"""All files below a folder, each once: links are followed, and circles of links are cut.

A file is known by its place on the disk and not by its name, so that an image to which two links
lead is found out.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fl_vitlora.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"),
        *(".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
    )
)
DICOM_SUFFIXES = frozenset((".dcm", ".dicom"))
PASSED_OVER = frozenset(  # what operating systems leave behind; compared without case
    ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information")
)
DICOM_PREAMBLE = 128  # bytes, after which a DICOM file says that it is one

Place = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class File:
    """A file below the folder.

    Attributes:
        name: The file's path, relative to the folder, with "/" between its parts.
        place: Where the file lies on the disk.
        linked: Whether a link leads to it.
    """

    name: str
    place: Place
    linked: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Returns the folders that the file lies in, and the file's own name."""
        return tuple(self.name.split("/"))


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        root: The folder.
        images: All image files, sorted by their names.
        others: All other files, sorted by their names.
    """

    root: Path
    images: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)


def list_folder(root: Path, *, dicom: bool) -> Listing:
    """Lists a folder in one pass.

    Hidden files and what operating systems leave behind (`PASSED_OVER`) are passed over.

    Args:
        root: The folder.
        dicom: Whether DICOM files count as images.

    Returns:
        All other files.

    Raises:
        UserError: When a folder cannot be read, or an image is a link to nothing.
    """
    listing = Listing(root)
    try:
        own = root.stat()
        start = _Folder("", own.st_dev, frozenset([(own.st_dev, own.st_ino)]), linked=False)
        for entry, folder in _walk(root, start):
            _take(listing, entry, folder, dicom=dicom)
    except OSError as error:
        raise UserError(
            f"data set {root}: {error.filename or root} cannot be read: {error.strerror}"
        ) from None
    for files in (listing.images, listing.others):
        files.sort(key=lambda file: file.name)
    return listing


def is_passed_over(name: str) -> bool:
    """Tells whether a file or a folder is hidden, or a leaving of an operating system.

    Example:
        >>> is_passed_over(".DS_Store"), is_passed_over("__MACOSX"), is_passed_over("test tube")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in PASSED_OVER


def suffix_of(name: str) -> str:
    """Returns the ending of a file's name in small letters, with its dot.

    Example:
        >>> suffix_of("a.b/IMG.PNG"), suffix_of("a.b/README")
        ('.png', '')
    """
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - ten times faster than a Path


def count_kinds(files: Sequence[File]) -> str:
    """Counts files by their endings, the most frequent ones first.

    Example:
        >>> count_kinds([File("a.txt", (0, 1)), File("b.txt", (0, 2)), File("LICENSE", (0, 3))])
        '2 .txt, 1 without an ending'
    """
    kinds = Counter(suffix_of(file.name) for file in files).most_common()
    few = [f"{count} {kind or 'without an ending'}" for kind, count in kinds[:6]]
    rest = sum(count for _, count in kinds[6:])
    return ", ".join([*few, f"{rest} of other kinds"] if rest else few)


def is_dicom(path: str, name: str) -> bool:
    """Tells whether a file is DICOM: by its ending, or by its content where no ending says so."""
    suffix = suffix_of(name)
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix and not suffix[1:].isdigit():
        return False
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - as above
            return file.read(DICOM_PREAMBLE + 4)[DICOM_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def same_file(root: Path, one: File, other: File) -> bool:
    """Tells whether two names lead to one file; some file systems give a number twice."""
    first, second = root / one.name, root / other.name
    return first.resolve() == second.resolve() or (
        first.stat().st_nlink > 1 and first.samefile(second)
    )


@dataclass(frozen=True)
class _Folder:
    """Where the walk is: the folder's name with its "/", and the folders above, itself included."""

    name: str
    device: int
    above: frozenset[Place]
    linked: bool


def _walk(path: Path | str, folder: _Folder) -> Iterator[tuple[os.DirEntry[str], _Folder]]:
    """Yields all that is no folder, with the folder that it is in."""
    with os.scandir(path) as entries:
        for entry in entries:
            if is_passed_over(entry.name):
                continue
            if not entry.is_dir():
                yield entry, folder
                continue
            found = entry.stat()
            place = (found.st_dev, found.st_ino)
            if place in folder.above:
                continue  # a circle of links
            below = _Folder(
                f"{folder.name}{entry.name}/",
                found.st_dev,
                folder.above | {place},
                linked=folder.linked or entry.is_symlink(),
            )
            yield from _walk(entry.path, below)


def _take(listing: Listing, entry: os.DirEntry[str], folder: _Folder, *, dicom: bool) -> None:
    """Puts a file where it belongs."""
    name, suffix = f"{folder.name}{entry.name}", suffix_of(entry.name)
    place, linked = (folder.device, -1), folder.linked
    regular = entry.is_file()
    if entry.is_symlink():
        linked = True
        if regular:
            found = entry.stat()
            place = (found.st_dev, found.st_ino)
        elif suffix in IMAGE_SUFFIXES | DICOM_SUFFIXES:
            raise UserError(
                f"data set {listing.root}: {name} is a link to nothing; mend or remove it"
            )
    else:
        place = (folder.device, entry.inode())
    known = suffix in IMAGE_SUFFIXES or (dicom and regular and is_dicom(entry.path, entry.name))
    (listing.images if regular and known else listing.others).append(File(name, place, linked))
