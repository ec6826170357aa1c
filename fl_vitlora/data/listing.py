"""Lists all files in a folder and its subfolders; symbolic links are followed, but no cycles.

Each file has a name and a place on the disk (device and inode). Two names with the same place
usually lead to the same image.
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
PASSED_OVER = frozenset(  # lower-case names of files and folders that operating systems create
    ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information")
)
DICOM_PREAMBLE = 128  # the number of bytes before the mark "DICM" in a DICOM file

Place = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class File:
    """A file in the listed folder or in one of its subfolders.

    Attributes:
        name: The path of the file relative to the listed folder, with "/" between its parts.
        place: The device and the inode of the file.
        linked: True if the file, or a folder in its path, is a symbolic link.
    """

    name: str
    place: Place
    linked: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Returns the names of the folders in the file's path, and the name of the file."""
        return tuple(self.name.split("/"))


@dataclass
class Listing:
    """The files in a folder and its subfolders.

    Attributes:
        root: The path of the listed folder.
        images: The image files, sorted by name.
        others: All other files, sorted by name.
    """

    root: Path
    images: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)


def list_folder(root: Path, *, dicom: bool) -> Listing:
    """Lists all files in a folder and its subfolders.

    Hidden files, and files that operating systems create (`PASSED_OVER`), are not listed.

    Args:
        root: The path of the folder.
        dicom: True if DICOM files count as images.

    Returns:
        The list of the image files and of all other files.

    Raises:
        UserError: When a folder cannot be read, or when an image is a broken link.
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
    """Returns True if a file or folder is hidden, or was created by an operating system.

    Args:
        name: The name of the file or folder, without its path.

    Example:
        >>> is_passed_over(".DS_Store"), is_passed_over("__MACOSX"), is_passed_over("test tube")
        (True, True, False)
    """
    return name.startswith(".") or name.lower() in PASSED_OVER


def suffix_of(name: str) -> str:
    """Returns the suffix of a file's name in lower case, with its dot.

    Args:
        name: The name or path of the file.

    Example:
        >>> suffix_of("a.b/IMG.PNG"), suffix_of("a.b/README")
        ('.png', '')
    """
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 - ten times faster than a Path


def count_kinds(files: Sequence[File]) -> str:
    """Returns a text with the number of files of each suffix, the most frequent suffix first.

    Args:
        files: The files to count.

    Example:
        >>> count_kinds([File("a.txt", (0, 1)), File("b.txt", (0, 2)), File("LICENSE", (0, 3))])
        '2 .txt, 1 without an ending'
    """
    kinds = Counter(suffix_of(file.name) for file in files).most_common()
    few = [f"{count} {kind or 'without an ending'}" for kind, count in kinds[:6]]
    rest = sum(count for _, count in kinds[6:])
    return ", ".join([*few, f"{rest} of other kinds"] if rest else few)


def is_dicom(path: str, name: str) -> bool:
    """Returns True if a file is a DICOM image.

    The suffix of the name decides. If the name has no suffix, or if its suffix is a number, the
    content decides.

    Args:
        path: The path of the file.
        name: The name of the file.
    """
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
    """Returns True if two names lead to one file.

    Some file systems give two different files the same inode number. Therefore the device and the
    inode alone do not show that two names lead to the same file.

    Args:
        root: The listed folder.
        one: The first file in the listed folder.
        other: The second file in the listed folder.
    """
    first, second = root / one.name, root / other.name
    return first.resolve() == second.resolve() or (
        first.stat().st_nlink > 1 and first.samefile(second)
    )


@dataclass(frozen=True)
class _Folder:
    """A folder whose files are being listed.

    Attributes:
        name: The path of the folder relative to the listed folder, with a "/" at its end.
        device: The number of the device (disk) that contains the folder.
        above: The places of this folder and of all folders that contain this folder.
        linked: True if this folder, or a folder that contains this folder, is a symbolic link.
    """

    name: str
    device: int
    above: frozenset[Place]
    linked: bool


def _walk(path: Path | str, folder: _Folder) -> Iterator[tuple[os.DirEntry[str], _Folder]]:
    """Yields each file in a folder and its subfolders, together with the folder of the file."""
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
                continue  # a cycle of links
            below = _Folder(
                f"{folder.name}{entry.name}/",
                found.st_dev,
                folder.above | {place},
                linked=folder.linked or entry.is_symlink(),
            )
            yield from _walk(entry.path, below)


def _take(listing: Listing, entry: os.DirEntry[str], folder: _Folder, *, dicom: bool) -> None:
    """Adds a file to the images or to the other files of a listing.

    Raises:
        UserError: When an image is a broken link.
    """
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
                f"data set {listing.root}: {name} is a broken link; repair or remove the link"
            )
    else:
        place = (folder.device, entry.inode())
    known = suffix in IMAGE_SUFFIXES or (dicom and regular and is_dicom(entry.path, entry.name))
    (listing.images if regular and known else listing.others).append(File(name, place, linked))
