"""Reads tables of image paths and labels: CSV, TSV and JSON lines.

An error message names a row by its file and line. The path of an image is relative to the folder of
the table, or to the folder of the data set.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Fetch, Part, labels_of, number_classes
from fl_vitlora.data.images import Indices
from fl_vitlora.data.labels import class_of, expect_no_mark
from fl_vitlora.data.listing import DICOM_SUFFIXES, IMAGE_SUFFIXES, Listing, Place, suffix_of
from fl_vitlora.data.places import resolve_inside
from fl_vitlora.data.splits import meaning_of
from fl_vitlora.errors import UserError, shown

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".ndjson")
METADATA = "metadata"
IMAGE_COLUMNS = (
    *("file_name", "image", "img", "picture", "photo", "image_path", "img_path"),
    *("file_path", "filepath", "filename", "file", "path"),
)
LABEL_COLUMNS = ["label", "labels", "fine_label", "target", "class", "class_name", "category"]
SPLIT_COLUMN = "split"
LONGEST_FIELD = 2**24  # characters


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        where: The file and the line of the row, for messages.
        values: The values of the row, by the name of the column.
    """

    where: str
    values: dict[str, Any]


def find_tables(listing: Listing) -> list[str]:
    """Finds the tables that describe the images of a folder.

    A table describes images if its name without the suffix is `metadata` (for example
    `metadata.csv`) and it is in the folder or in a folder directly below. A table also describes
    images if its name is that of a split (for example `train.csv`) and it is in the folder itself.
    Other tables are not used.

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
    """Finds the table of a folder that has only one table, whatever the name of the table.

    Tables in the folders below are not counted.

    Args:
        listing: The list of all files of the data set's folder.

    Returns:
        A list with the name of the only table, or an empty list if there are several tables or
        none.
    """
    found = [
        file.name
        for file in listing.others
        if len(file.parts) == 1 and suffix_of(file.name) in SUFFIXES
    ]
    return found if len(found) == 1 else []


def read_tables(listing: Listing, names: Sequence[str], config: DataConfig) -> dict[str, Part]:
    """Reads the images and labels that tables list.

    The column `split` states the split of a row. If there is no such column, the split is the name
    of the table, or else the name of the table's folder.

    Args:
        listing: The list of all files of the data set's folder.
        names: The names of the tables.
        config: The settings of the data, which may name the columns.

    Returns:
        A dictionary: the `Part` of each split, by the name of the split.

    Raises:
        UserError: When a table or one of its rows is not valid; the message names the file and the
            line.
    """
    splits: dict[str, list[tuple[Encoded, str, str]]] = {}
    known = {file.name: file.place for file in listing.images if not file.linked}
    seen, root = _Seen(listing.root), listing.root.resolve()
    for name in names:
        rows = list(_rows(listing.root / name, name))
        if not rows:
            raise UserError(
                f"data set {listing.root}: expected rows in the table {name}, but it has no rows"
            )
        image_column = _image_column(name, rows[0], config)
        label_column = _label_column(name, rows[0], image_column, config)
        folder = f"{name.rpartition('/')[0]}/".lstrip("/")
        for row in rows:
            split = _split_of(name, row)
            named = next((n for n in _names_in(row, image_column, folder) if n in known), None)
            # Most images are in the listing, which saves accesses to the disk.
            path = root / named if named else _path_of(row, image_column, folder, listing.root)
            label = class_of(row.values.get(label_column), f"{row.where}, column {label_column!r}")
            seen.expect_new(path, row.where, known[named] if named else None)
            splits.setdefault(split, []).append((Encoded(str(path), path=path), label, row.where))
    return {split: _part(rows) for split, rows in splits.items()}


class _Seen:
    """Remembers the images that rows have named; no image may occur in two rows.

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
            where: The file and line of the row that names the image.
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
                f"{where}: the image {name} was named before, in {before}; name each image once"
            )


def _part(rows: Sequence[tuple[Encoded, str, str]]) -> Part:
    """Creates a `Part` from rows of an image, its class name, and its file and line."""
    images = [image for image, _, _ in rows]
    labels = [label for _, label, _ in rows]
    expect_no_mark(labels, lambda row: rows[row][2])
    classes = number_classes(labels)
    return Part(labels=labels_of(labels, classes), names=classes, fetch=_fetcher(images))


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
                            f"{path}, line {reader.line_num}: more fields than columns; expected "
                            "one field for each column"
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


def _image_column(name: str, first: Row, config: DataConfig) -> str:
    """Finds the column of image paths: by the setting, a usual name, or the suffixes of paths.

    Raises:
        UserError: When no column, or more than one column, can hold image paths.
    """
    columns = list(first.values)
    if config.image_column:
        return _expect_column(name, config.image_column, columns)
    for column in IMAGE_COLUMNS:
        if column in columns:
            return column
    endings = IMAGE_SUFFIXES | DICOM_SUFFIXES
    found = [column for column in columns if suffix_of(str(first.values[column])) in endings]
    if len(found) != 1:
        raise UserError(
            f"table {name}: expected one column of image paths among {columns}; name the column to "
            "use: --set data.image_column=NAME"
        )
    return found[0]


def _label_column(name: str, first: Row, image_column: str, config: DataConfig) -> str:
    """Finds the column of labels: the setting's, one with a usual name, or the only other column.

    Raises:
        UserError: When no column can hold labels.
    """
    columns = list(first.values)
    if config.label_column:
        return _expect_column(name, config.label_column, columns)
    for column in LABEL_COLUMNS:
        if column in columns:
            return column
    left = [column for column in columns if column not in (image_column, SPLIT_COLUMN)]
    if len(left) != 1:
        raise UserError(
            f"table {name}: found no label column among {columns}; name the column to use: --set "
            "data.label_column=NAME"
        )
    return left[0]


def _expect_column(name: str, column: str, columns: Sequence[str]) -> str:
    """Returns the name of a column after checking that the table has it.

    Raises:
        UserError: When the table does not have the column.
    """
    if column not in columns:
        raise UserError(f"table {name} has no column {column!r}, only {list(columns)}")
    return column


def _names_in(row: Row, column: str, folder: str) -> tuple[str, ...]:
    """Returns the names that the image of a row can have in a listing, the likeliest first."""
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
    """Returns the split of a row: from the column `split`, or the table's name or folder.

    Raises:
        UserError: When the row has no value in the column `split`.
    """
    value = row.values.get(SPLIT_COLUMN)
    if SPLIT_COLUMN in row.values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{row.where}, column {SPLIT_COLUMN!r}: expected the name of a split, got nothing"
            )
        return value.strip()
    stem, folder = _stem(name), name.rpartition("/")[0]
    if meaning_of(stem):
        return stem
    return folder if meaning_of(folder) else "train"


def _stem(name: str) -> str:
    """Returns the name of a file in lower case, without its folders and its suffix."""
    return name.rpartition("/")[2].rpartition(".")[0].lower()
