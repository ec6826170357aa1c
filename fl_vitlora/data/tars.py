"""Reads tar files in the WebDataset format.

A member is a file inside a tar file. A sample consists of an image and its label, which are members
whose names differ only in the suffix. The function `read_tars` reads only the positions of the
members and the labels. An image is read from the tar file when it is needed. The program unpacks no
file to the disk, and opens only labels and images.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Fetch, Part, count, labels_of, number_classes
from fl_vitlora.data.clients import expect_column, name_of, number_owners
from fl_vitlora.data.images import Indices, Name
from fl_vitlora.data.labels import class_of, expect_no_mark
from fl_vitlora.data.listing import IMAGE_SUFFIXES, is_passed_over
from fl_vitlora.data.table_columns import LABEL_COLUMNS
from fl_vitlora.errors import UserError

TEXT_LABELS = ("cls", "label", "txt")  # suffixes of labels; the first suffix in a sample is used
LONGEST_LABEL = 2**20  # the largest number of bytes in a label


@dataclass(frozen=True)
class Member:
    """The position of a member in a tar file.

    Attributes:
        tar: The path of the tar file.
        name: The name of the member.
        start: The position of the member's first byte in the tar file.
        size: The size of the member in bytes.
    """

    tar: Path
    name: str
    start: int
    size: int

    def read(self) -> bytes:
        """Reads and returns the bytes of the member."""
        with self.tar.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)

    @property
    def where(self) -> str:
        """Returns the tar file and the name of the member, for messages."""
        return f"{self.tar}, member {self.name}"


def read_tars(paths: Sequence[Path], config: DataConfig) -> tuple[Part, int]:
    """Reads the tar files of one split.

    Args:
        paths: The paths of the tar files.
        config: The settings of the data. The setting `data.image_column` may name the suffix of the
            images. The settings `data.label_column` and `data.client_column` may name the suffixes
            of the labels and of the clients, or keys in the JSON members.

    Returns:
        A pair: the split as a `Part`, and the number of members that were not used.

    Raises:
        UserError: When a file is damaged, when no image is found, or when a sample has no label, no
            client or several images.
    """
    images: list[Member] = []
    labels: list[str] = []
    clients: list[Name] = []
    unused = 0
    for path in paths:
        for key, members in _samples(path):
            image = _image_of(key, members, config)
            if image is None:
                unused += len(members)
                continue
            images.append(image)
            labels.append(_label_of(image, members, config))
            if config.client_column:
                clients.append(_client_of(image, members, config.client_column))
    if not images:
        raise UserError(
            f"{paths[0]}: expected images, found no images in {count(len(paths), 'tar file')}"
        )
    expect_no_mark(labels, lambda row: images[row].where)
    names = number_classes(labels)
    owners, named = number_owners(clients, lambda row: images[row].where) if clients else (None, ())
    part = Part(
        labels=labels_of(labels, names),
        names=names,
        fetch=_fetcher(images),
        owners=owners,
        clients=named,
    )
    return part, unused


def _samples(path: Path) -> Iterator[tuple[str, Mapping[str, Member]]]:
    """Yields, for each sample of a tar file, its name and a mapping from suffixes to members.

    Raises:
        UserError: When the file cannot be read, or when two members have the same name.
    """
    samples: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                folder, slash, name = entry.name.rpartition("/")
                stem, _, ending = name.partition(".")
                parts = [part for part in entry.name.split("/") if part.strip(".")]
                if entry.isreg() and not any(map(is_passed_over, parts)):
                    place = Member(path, entry.name, entry.offset_data, entry.size)
                    sample = samples.setdefault(f"{folder}{slash}{stem}", {})
                    if sample.setdefault(ending.lower(), place) is not place:
                        raise UserError(
                            f"{place.where}: two members have this name; expected different names"
                        )
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    yield from samples.items()


def _image_of(key: str, members: Mapping[str, Member], config: DataConfig) -> Member | None:
    """Returns the image of a sample, or None if the sample has no image.

    Raises:
        UserError: When the sample has several images.
    """
    if config.image_column in members:
        return members[str(config.image_column)]
    found = [
        m for ending, m in members.items() if f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES
    ]
    if len(found) > 1:
        raise UserError(
            f"{found[0].tar}, sample {key}: expected one image, found the suffixes "
            f"{sorted(members)}; name the suffix to use: --set data.image_column=SUFFIX"
        )
    return found[0] if found else None


def _label_of(image: Member, members: Mapping[str, Member], config: DataConfig) -> str:
    """Returns the class name of a sample, from a member with text or from a JSON member.

    Raises:
        UserError: When the sample has no label.
    """
    wanted = [config.label_column] if config.label_column else list(TEXT_LABELS)
    for ending in wanted:
        if ending in members:
            return class_of(_text(members[str(ending)]), members[str(ending)].where)
    if "json" in members:
        content = _json(members["json"])
        for key in [config.label_column] if config.label_column else LABEL_COLUMNS:
            if key in content and key != config.client_column:
                return class_of(content[str(key)], f"{members['json'].where}, key {key!r}")
    raise UserError(
        f"{image.where}: no label among the suffixes {sorted(members)} of the sample; name the "
        "suffix of the labels, or a key of the JSON members: --set data.label_column=NAME"
    )


def _client_of(image: Member, members: Mapping[str, Member], column: str) -> Name:
    """Returns the name of a sample's client, from a member with text or from a JSON member.

    Raises:
        UserError: When the sample has no client in either member.
    """
    if column.lower() in members:
        member = members[column.lower()]
        return name_of(_text(member).rstrip("\r\n"), member.where)
    content = _json(members["json"]) if "json" in members else {}
    if column not in content:
        expect_column(image.where, column, [*members, *content])
    return name_of(content[column], f"{members['json'].where}, key {column!r}")


def _text(member: Member) -> str:
    """Reads a member as text.

    Raises:
        UserError: When the member is too long for a label or is not text.
    """
    if member.size > LONGEST_LABEL:
        raise UserError(f"{member.where}: expected a label, got {member.size:,} bytes")
    try:
        return member.read().decode()
    except UnicodeDecodeError:
        raise UserError(f"{member.where}: expected text in UTF-8, got other bytes") from None


def _json(member: Member) -> dict[str, Any]:
    """Reads a member as a JSON object.

    Raises:
        UserError: When the content of the member is not a JSON object.
    """
    try:
        content = json.loads(_text(member))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{member.where}: expected a JSON object, got other content")
    return content


def _fetcher(images: Sequence[Member]) -> Fetch:
    """Returns a function that takes positions and reads the images at these positions."""

    def fetch(positions: Indices) -> list[Encoded]:
        chosen = [images[position] for position in positions.tolist()]
        return [Encoded(member.where, content=member.read()) for member in chosen]

    return fetch
