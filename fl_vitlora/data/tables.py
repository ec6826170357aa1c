"""Reads tables of image paths and labels: CSV, TSV and JSON lines.

Messages name a row by its file and line. The path of an image is relative to the folder of the
table, or to the folder of the data set.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Fetch, Part, labels_of, number_classes
from fl_vitlora.data.images import Indices
from fl_vitlora.data.labels import class_of, expect_no_mark
from fl_vitlora.data.listing import DICOM_SUFFIXES, IMAGE_SUFFIXES, Listing, suffix_of
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
    """Finds the tables that describe images; other tables are not used.

    A table describes images if its name is `metadata` (such as `metadata.csv`) and it lies in the
    folder or in a folder directly below it. A table also describes images if its name is that of a
    split and it lies in the folder itself.

    Args:
        listing: The listing of all files of the folder.

    Returns:
        The names of the tables.
    """
    tables = [file for file in listing.others if suffix_of(file.name) in SUFFIXES]
    return [
        file.name
        for file in tables
        if (_stem(file.name) == METADATA and len(file.parts) <= 2)
        or (len(file.parts) == 1 and meaning_of(_stem(file.name)))
    ]


def only_table(listing: Listing) -> list[str]:
    """Finds the only table in the folder itself; its name does not matter.

    Args:
        listing: The listing of all files of the folder.

    Returns:
        A list that contains the name of this table; an empty list if there are several tables or
        none.
    """
    found = [
        file.name
        for file in listing.others
        if len(file.parts) == 1 and suffix_of(file.name) in SUFFIXES
    ]
    return found if len(found) == 1 else []


def read_tables(listing: Listing, names: Sequence[str], config: DataConfig) -> dict[str, Part]:
    """Reads tables of images.

    The split of a row is in its column `split`. Without this column, it is the name of the table,
    or else the name of the table's folder.

    Args:
        listing: The listing of all files of the folder.
        names: The names of the tables.
        config: The settings of the data, which may name the columns.

    Returns:
        The part of each split, by the name of the split.

    Raises:
        UserError: When a table or one of its rows is not valid; the message names file and line.
    """
    splits: dict[str, list[tuple[Encoded, str, str]]] = {}
    known = {file.name for file in listing.images if not file.linked}
    seen = _Seen(listing.root)
    for name in names:
        rows = list(_rows(listing.root / name, name))
        if not rows:
            raise UserError(f"data set {listing.root}: {name} has no rows")
        image_column = _image_column(name, rows[0], config)
        label_column = _label_column(name, rows[0], image_column, config)
        folder = f"{name.rpartition('/')[0]}/".lstrip("/")
        for row in rows:
            split = _split_of(name, row)
            path = _path_of(row, image_column, folder, listing, known)
            label = class_of(row.values.get(label_column), f"{row.where}, column {label_column!r}")
            seen.expect_new(path, row.where)
            splits.setdefault(split, []).append((Encoded(str(path), path=path), label, row.where))
    return {split: _part(rows) for split, rows in splits.items()}


class _Seen:
    """The images that earlier rows named; no image may occur in two rows or in two splits.

    Args:
        root: The folder of the data set.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rows: dict[tuple[int, int], tuple[Path, str]] = {}

    def expect_new(self, path: Path, where: str) -> None:
        """Checks that no earlier row named an image.

        Args:
            path: The path of the image.
            where: The file and line of the row that names it.

        Raises:
            UserError: When an earlier row named the same image.
        """
        status = path.stat()
        first, before = self._rows.setdefault((status.st_dev, status.st_ino), (path, where))
        if before != where and (first == path or status.st_nlink > 1):
            name = path.relative_to(self._root.resolve())
            raise UserError(f"{where}: the image {name} was named before, in {before}")


def _part(rows: Sequence[tuple[Encoded, str, str]]) -> Part:
    """Creates a `Part`; each row has an image, its class name and its place in the table."""
    images = [image for image, _, _ in rows]
    labels = [label for _, label, _ in rows]
    expect_no_mark(labels, lambda row: rows[row][2])
    classes = number_classes(labels)
    return Part(labels=labels_of(labels, classes), names=classes, fetch=_fetcher(images))


def _fetcher(images: Sequence[Encoded]) -> Fetch:
    """Returns the function that takes positions and returns the images there."""

    def fetch(positions: Indices) -> list[Encoded]:
        return [images[position] for position in positions.tolist()]

    return fetch


def _rows(path: Path, name: str) -> Iterator[Row]:
    """Yields the rows of a table; the suffix of its name decides the format.

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
                        raise UserError(f"{path}, line {reader.line_num}: more fields than columns")
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
        raise UserError(f"{where}: expected JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with columns, got {shown(values)}")
    return Row(where, values)


def _image_column(name: str, first: Row, config: DataConfig) -> str:
    """Finds the column of image paths: by the setting, a known name, or the suffixes of the paths.

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
            f"table {name}: found no column of image paths among {columns}; name it: --set "
            "data.image_column=NAME"
        )
    return found[0]


def _label_column(name: str, first: Row, image_column: str, config: DataConfig) -> str:
    """Finds the column of labels: by the setting, by a known name, or because no other is left.

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
            f"table {name}: found no label column among {columns}; name it: --set "
            "data.label_column=NAME"
        )
    return left[0]


def _expect_column(name: str, column: str, columns: Sequence[str]) -> str:
    """Returns the name of a column after checking that the table has it.

    Raises:
        UserError: When the table lacks the column.
    """
    if column not in columns:
        raise UserError(f"table {name} has no column {column!r}, only {list(columns)}")
    return column


def _path_of(row: Row, column: str, folder: str, listing: Listing, known: Collection[str]) -> Path:
    """Finds the image file that a row names.

    Raises:
        UserError: When the row names no file of the data set.
    """
    value = row.values.get(column)
    where = f"{row.where}, column {column!r}"
    if not isinstance(value, str):
        raise UserError(f"{where}: expected the path of an image, got {shown(value)}")
    root = listing.root.resolve()
    for name in (f"{folder}{value}", value):
        if name in known:  # most images are in the listing, which saves an access to the disk
            return root / name
    starts = [listing.root / folder, listing.root]
    return resolve_inside(value, starts, [listing.root], where)


def _split_of(name: str, row: Row) -> str:
    """Returns the split of a row: from its column, the table's name or the table's folder.

    Raises:
        UserError: When the column is empty.
    """
    value = row.values.get(SPLIT_COLUMN)
    if SPLIT_COLUMN in row.values:
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{row.where}, column {SPLIT_COLUMN!r}: expected a split, got nothing")
        return value.strip()
    stem, folder = _stem(name), name.rpartition("/")[0]
    if meaning_of(stem):
        return stem
    return folder if meaning_of(folder) else "train"


def _stem(name: str) -> str:
    """Returns the name of a file in small letters, without its folders and its suffix."""
    return name.rpartition("/")[2].rpartition(".")[0].lower()
