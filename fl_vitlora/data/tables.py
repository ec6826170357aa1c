"""Reads tables of image paths and labels: CSV, TSV and JSON lines.

An error message about a row states the file and the line. The path of an image is relative to the
folder of the table, or to the folder of the data set.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Fetch, Part, labels_of, number_classes
from fl_vitlora.data.clients import expect_column, name_of, number_owners
from fl_vitlora.data.images import Indices, Name
from fl_vitlora.data.labels import class_of, expect_no_mark
from fl_vitlora.data.listing import Listing, Place, suffix_of
from fl_vitlora.data.places import resolve_inside
from fl_vitlora.data.splits import meaning_of
from fl_vitlora.data.table_columns import SPLIT_COLUMN, find_image_column, find_label_column
from fl_vitlora.errors import UserError, shown

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson")
METADATA = "metadata"
LONGEST_FIELD = 2**24  # the largest number of characters in a field


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        where: The file and the line of the row, for messages.
        values: A mapping from the names of columns to the values of the row.
    """

    where: str
    values: dict[str, Any]


def find_tables(listing: Listing) -> list[str]:
    """Finds the tables that describe the images of a folder.

    Two kinds of tables describe images. A table with the name `metadata` (for example
    `metadata.csv`) may be in the folder itself or in a direct subfolder. A table with the name of a
    split (for example `train.csv`) must be in the folder itself. Other tables are not used.

    Args:
        listing: The list of all files of the data set's folder.

    Returns:
        A list of the names of the tables that describe images.
    """
    tables = [file for file in listing.others if suffix_of(file.name) in SUFFIXES]
    return [
        file.name
        for file in tables
        if (_stem(file.name) == METADATA and len(file.parts) <= 2)
        or (len(file.parts) == 1 and meaning_of(_stem(file.name)))
    ]


def only_table(listing: Listing) -> list[str]:
    """Finds the table of a folder with exactly one table, which may have any name.

    Tables in subfolders are not counted.

    Args:
        listing: The list of all files of the data set's folder.

    Returns:
        A list with the name of the only table. If there is no table, or if there are several
        tables, the list is empty.
    """
    found = [
        file.name
        for file in listing.others
        if len(file.parts) == 1 and suffix_of(file.name) in SUFFIXES
    ]
    return found if len(found) == 1 else []


def read_tables(listing: Listing, names: Sequence[str], config: DataConfig) -> dict[str, Part]:
    """Reads the images and labels that tables list.

    The column `split` states the split of a row. Without this column, the split follows from the
    name of the table, or from the name of the table's folder. If neither name is the name of a
    split, the split is "train".

    Args:
        listing: The list of all files of the data set's folder.
        names: The names of the tables.
        config: The settings of the data, which may name the columns.

    Returns:
        A dictionary from the name of each split to its `Part`.

    Raises:
        UserError: When a table or one of its rows is not valid. The message states the file and the
            line.
    """
    splits: dict[str, list[_Sample]] = {}
    columns: dict[str, None] = {}
    known = {file.name: file.place for file in listing.images if not file.linked}
    seen, root = _Seen(listing.root), listing.root.resolve()
    for name in names:
        rows = list(_rows(listing.root / name, name))
        if not rows:
            raise UserError(
                f"data set {listing.root}: expected rows in the table {name}, but it has no rows"
            )
        image_column = find_image_column(name, rows[0].values, config)
        label_column = find_label_column(name, list(rows[0].values), image_column, config)
        folder = f"{name.rpartition('/')[0]}/".lstrip("/")
        for row in rows:
            split = _split_of(name, row)
            named = next((n for n in _names_in(row, image_column, folder) if n in known), None)
            # Most images are in the listing; for these images, the disk is not accessed again.
            path = root / named if named else _path_of(row, image_column, folder, listing.root)
            label = class_of(row.values.get(label_column), f"{row.where}, column {label_column!r}")
            seen.expect_new(path, row.where, known[named] if named else None)
            image, client = (
                Encoded(str(path), path=path),
                row.values.get(config.client_column or ""),
            )
            splits.setdefault(split, []).append(_Sample(image, label, client, row.where))
            columns |= dict.fromkeys(row.values)
    if config.client_column:
        expect_column(str(listing.root), config.client_column, list(columns))
    return {split: _part(rows, config.client_column) for split, rows in splits.items()}


class _Sample(NamedTuple):
    """An image in a table, with its class, the value that names its client, and its row."""

    image: Encoded
    label: str
    client: Any
    where: str


class _Seen:
    """A record of the images in earlier rows; no image may occur in two rows.

    Args:
        root: The path of the folder of the data set.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rows: dict[tuple[int, int], tuple[Path, str]] = {}

    def expect_new(self, path: Path, where: str, place: Place | None) -> None:
        """Checks that no earlier row has named the same image.

        Args:
            path: The path of the image.
            where: The file and the line of the row that names the image.
            place: The device and the inode of the image; None if device and inode are not known
                yet.

        Raises:
            UserError: When an earlier row has named the same image.
        """
        if place is None:
            status = path.stat()
            place = status.st_dev, status.st_ino
        first, before = self._rows.setdefault(place, (path, where))
        if before != where and (first == path or path.stat().st_nlink > 1):
            name = path.relative_to(self._root.resolve())
            raise UserError(
                f"{where}: the image {name} is already in {before}; name each image only once"
            )


def _part(rows: Sequence[_Sample], client_column: str | None) -> Part:
    """Creates a `Part` from the rows of a split; without clients in all rows, it has no owners.

    Raises:
        UserError: When a row has no label, or when only some rows of the split name a client.
    """
    labels = [row.label for row in rows]
    expect_no_mark(labels, lambda row: rows[row].where)
    classes = number_classes(labels)
    owners: Indices | None = None
    clients: tuple[Name, ...] = ()
    if client_column and any(row.client is not None for row in rows):
        places = [f"{row.where}, column {client_column!r}" for row in rows]
        names = [name_of(row.client, place) for row, place in zip(rows, places, strict=True)]
        owners, clients = number_owners(names, places.__getitem__)
    return Part(
        labels=labels_of(labels, classes),
        names=classes,
        fetch=_fetcher([row.image for row in rows]),
        owners=owners,
        clients=clients,
    )


def _fetcher(images: Sequence[Encoded]) -> Fetch:
    """Returns a function that takes positions and returns the images at these positions."""

    def fetch(positions: Indices) -> list[Encoded]:
        return [images[position] for position in positions.tolist()]

    return fetch


def _rows(path: Path, name: str) -> Iterator[Row]:
    """Yields the rows of a table. The suffix of the table's name decides the format.

    Raises:
        UserError: When the table cannot be read, or when a row is not valid.
    """
    csv.field_size_limit(LONGEST_FIELD)
    suffix = suffix_of(name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if suffix in DELIMITERS:
                reader = csv.DictReader(
                    file, delimiter=DELIMITERS[suffix], skipinitialspace=True, strict=True
                )
                for values in reader:
                    if None in values:
                        raise UserError(
                            f"{path}, line {reader.line_num}: found more fields than columns; "
                            "expected one field for each column"
                        )
                    yield Row(f"{path}, line {reader.line_num}", dict(values))
            else:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _json_row(f"{path}, line {number}", line)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _json_row(where: str, line: str) -> Row:
    """Reads one line of JSON as a row.

    Raises:
        UserError: When the line is not a JSON object.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: expected a line of valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(
            f"{where}: expected a JSON object with the columns as keys, got {shown(values)}"
        )
    return Row(where, values)


def _names_in(row: Row, column: str, folder: str) -> tuple[str, ...]:
    """Returns the names that a row's image can have in a listing, the most probable name first."""
    value = row.values.get(column)
    return (f"{folder}{value}", value) if isinstance(value, str) else ()


def _path_of(row: Row, column: str, folder: str, root: Path) -> Path:
    """Finds the image file that a row names.

    Raises:
        UserError: When the row does not name a file of the data set.
    """
    value = row.values.get(column)
    where = f"{row.where}, column {column!r}"
    if not isinstance(value, str):
        raise UserError(f"{where}: expected the path of an image, got {shown(value)}")
    return resolve_inside(value, [root / folder, root], [root], where)


def _split_of(name: str, row: Row) -> str:
    """Returns the split of a row from the column `split`, or from the table's name or folder.

    Raises:
        UserError: When the row has no value in the column `split`.
    """
    value = row.values.get(SPLIT_COLUMN)
    if SPLIT_COLUMN in row.values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{row.where}, column {SPLIT_COLUMN!r}: expected the name of a split, got no value"
            )
        return value.strip()
    stem, folder = _stem(name), name.rpartition("/")[0]
    if meaning_of(stem):
        return stem
    return folder if meaning_of(folder) else "train"


def _stem(name: str) -> str:
    """Returns the name of a file in lower case, without its folders and its suffix."""
    return name.rpartition("/")[2].rpartition(".")[0].lower()
