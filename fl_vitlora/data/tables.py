"""Tables of paths and labels beside images: CSV, TSV and JSON lines.

A row is known by the line of its file. Paths begin at the folder of the table, or at the folder
of the data set.
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
        where: Its file and line, for messages.
        values: By column.
    """

    where: str
    values: dict[str, Any]


def find_tables(listing: Listing) -> list[str]:
    """Finds the tables that say what the images are, not any table that lies about.

    Those are `metadata.csv` and its like in the folder or in a split's folder, and tables that are
    named after splits in the folder itself.

    Returns:
        Their names.
    """
    tables = [file for file in listing.others if suffix_of(file.name) in SUFFIXES]
    return [
        file.name
        for file in tables
        if (_stem(file.name) == METADATA and len(file.parts) <= 2)
        or (len(file.parts) == 1 and meaning_of(_stem(file.name)))
    ]


def only_table(listing: Listing) -> list[str]:
    """Finds the one table in the folder itself, whatever its name is; none if there are several."""
    found = [
        file.name
        for file in listing.others
        if len(file.parts) == 1 and suffix_of(file.name) in SUFFIXES
    ]
    return found if len(found) == 1 else []


def read_tables(listing: Listing, names: Sequence[str], config: DataConfig) -> dict[str, Part]:
    """Reads tables.

    Args:
        listing: All files of the folder.
        names: Names of the tables.
        config: Names the columns, if they cannot be guessed.

    Returns:
        A part for each split: by the column `split`, the name of the table, or its folder.

    Raises:
        UserError: When a table or one of its rows cannot be understood; it names file and line.
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
    """The images that were named before: an image in two rows could be in two splits."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._rows: dict[tuple[int, int], tuple[Path, str]] = {}

    def expect_new(self, path: Path, where: str) -> None:
        """Refuses a second row of an image."""
        told = path.stat()
        first, before = self._rows.setdefault((told.st_dev, told.st_ino), (path, where))
        if before != where and (first == path or told.st_nlink > 1):
            name = path.relative_to(self._root.resolve())
            raise UserError(f"{where}: the image {name} was named before, in {before}")


def _part(rows: Sequence[tuple[Encoded, str, str]]) -> Part:
    images = [image for image, _, _ in rows]
    labels = [label for _, label, _ in rows]
    expect_no_mark(labels, lambda row: rows[row][2])
    classes = number_classes(labels)
    return Part(labels=labels_of(labels, classes), names=classes, fetch=_fetcher(images))


def _fetcher(images: Sequence[Encoded]) -> Fetch:
    def fetch(positions: Indices) -> list[Encoded]:
        return [images[position] for position in positions.tolist()]

    return fetch


def _rows(path: Path, name: str) -> Iterator[Row]:
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
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected an object with columns, got {shown(values)}")
    return Row(where, values)


def _image_column(name: str, first: Row, config: DataConfig) -> str:
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
    if column not in columns:
        raise UserError(f"table {name} has no column {column!r}, only {list(columns)}")
    return column


def _path_of(row: Row, column: str, folder: str, listing: Listing, known: Collection[str]) -> Path:
    value = row.values.get(column)
    where = f"{row.where}, column {column!r}"
    if not isinstance(value, str):
        raise UserError(f"{where}: expected the path of an image, got {shown(value)}")
    root = listing.root.resolve()
    for name in (f"{folder}{value}", value):
        if name in known:  # most are, and need no look at the disk
            return root / name
    starts = [listing.root / folder, listing.root]
    return resolve_inside(value, starts, [listing.root], where)


def _split_of(name: str, row: Row) -> str:
    """Finds the split of a row: its own column, else the table's name, else the table's folder."""
    told = row.values.get(SPLIT_COLUMN)
    if SPLIT_COLUMN in row.values:
        if not isinstance(told, str) or not told.strip():
            raise UserError(f"{row.where}, column {SPLIT_COLUMN!r}: expected a split, got nothing")
        return told.strip()
    stem, folder = _stem(name), name.rpartition("/")[0]
    if meaning_of(stem):
        return stem
    return folder if meaning_of(folder) else "train"


def _stem(name: str) -> str:
    return name.rpartition("/")[2].rpartition(".")[0].lower()
