"""Rows of a stored data set: which column holds the images, which the labels, and what is missing.

n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Fetch, Part, labels_of, number_classes, plain_name
from fl_vitlora.data.images import Indices
from fl_vitlora.data.labels import UNLABELLED, class_of, expect_no_mark
from fl_vitlora.data.places import resolve_inside
from fl_vitlora.data.tables import IMAGE_COLUMNS, LABEL_COLUMNS
from fl_vitlora.errors import UserError


def find_columns(where: str, rows: Any, config: DataConfig) -> tuple[str, str]:
    """Finds the columns of the images and of the labels.

    Raises:
        UserError: When a column is not there, or cannot be guessed; it names the setting.
    """
    image_column = config.image_column or _image_column(rows)
    label_column = config.label_column or _label_column(rows)
    for column in (image_column, label_column):
        if column not in rows.column_names:
            raise UserError(f"{where} has no column {column!r}, only {rows.column_names}")
    _expect_labels(rows, label_column)
    _expect_images(rows, image_column)
    return image_column, label_column


def has_no_labels(rows: Any, label_column: str) -> bool:
    """Tells whether a split says of all its images that they have no label."""
    if label_column not in rows.column_names:
        return True
    values = set(rows.with_format(None)[label_column][:])
    return len(rows) > 0 and values <= {None, UNLABELLED}


def to_part(where: str, rows: Any, columns: tuple[str, str], folders: Sequence[Path]) -> Part:
    """Makes a part of one split.

    Args:
        where: The data set and its split, for messages.
        rows: The rows of the split.
        columns: Of the images and of the labels.
        folders: Which may hold the images of rows that name files.

    Returns:
        The split.

    Raises:
        UserError: When a row lacks its label or its image; it names row and column.
    """
    image_column, label_column = columns
    _expect_images(rows, image_column)
    labels, names = _read_labels(where, rows, label_column)
    encoded = _encoded(rows, image_column)
    _check_images(where, encoded, image_column, folders)
    return Part(
        labels=labels,
        names=names,
        fetch=_fetcher(where, encoded, image_column, folders),
        mode=getattr(rows.features[image_column], "mode", None),
    )


def _image_column(rows: Any) -> str:
    import datasets

    found = [n for n, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not found:
        found = [name for name, kind in rows.features.items() if _holds_bytes(kind)]
    if not found:
        texts = [n for n, kind in rows.features.items() if _is_text(kind) and n in IMAGE_COLUMNS]
        found = texts[:1]
    if len(found) != 1:
        raise UserError(
            f"expected one image column, found {found} among {rows.column_names}; "
            "name it: --set data.image_column=NAME"
        )
    return str(found[0])


def _label_column(rows: Any) -> str:
    """Finds the labels; of several (CIFAR-100: fine and coarse) those with the most classes."""
    import datasets

    labels = {n: k for n, k in rows.features.items() if isinstance(k, datasets.ClassLabel)}
    if labels:
        return str(max(labels, key=lambda name: labels[name].num_classes))
    for name in LABEL_COLUMNS:
        if name in rows.column_names:
            return name
    raise UserError(
        f"found no label column among {rows.column_names}; name it: --set data.label_column=NAME"
    )


def _expect_labels(rows: Any, label_column: str) -> None:
    """Refuses a column of images, lists and the like, of which no two values are one class."""
    import datasets

    kind = rows.features[label_column]
    if not isinstance(kind, datasets.ClassLabel | datasets.Value):
        raise UserError(
            f"data.label_column {label_column}: expected labels, got {type(kind).__name__}"
        )


def _expect_images(rows: Any, image_column: str) -> None:
    import datasets

    if image_column not in rows.column_names:
        raise UserError(f"a split has no column {image_column!r}, only {rows.column_names}")
    kind = rows.features[image_column]
    if not (isinstance(kind, datasets.Image) or _holds_bytes(kind) or _is_text(kind)):
        raise UserError(f"column {image_column!r} holds {kind}, no images")


def _holds_bytes(kind: Any) -> bool:
    """Tells whether a column holds files: bytes, or bytes with a path."""
    if isinstance(kind, Mapping):
        return "bytes" in kind and set(kind) <= {"bytes", "path"}
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def _read_labels(where: str, rows: Any, column: str) -> tuple[Indices, tuple[str, ...]]:
    """Reads labels and the names of their classes, as this split numbers them."""
    values = rows.with_format(None)[column][:]  # in one piece; a column gives rows one by one
    place = f"data set {where}, column {column!r}, row"
    named = getattr(rows.features[column], "names", None)
    if named is not None:
        for row, value in enumerate(values):
            if value is None or value < 0:
                given = "no label" if value is None else f"no label ({value})"
                raise UserError(f"{place} {row} (counted from 0): {given}")
        names = tuple(plain_name(str(name)) for name in named)
        return np.asarray(values, dtype=np.int64), names
    known: dict[Any, str] = {}
    texts = []
    for row, value in enumerate(values):
        if value not in known:
            known[value] = class_of(value, f"{place} {row} (counted from 0)")
        texts.append(known[value])
    expect_no_mark(texts, lambda row: f"{place} {row} (counted from 0)")
    names = number_classes(texts)
    return labels_of(texts, names), names


def _encoded(rows: Any, image_column: str) -> Any:
    """Keeps the images alone, as files or as their bytes, to be decoded one by one."""
    import datasets

    alone = rows.select_columns(image_column).with_format(None)
    return alone.cast_column(image_column, datasets.Image(decode=False))


def _check_images(where: str, encoded: Any, column: str, folders: Sequence[Path]) -> None:
    """Refuses rows without an image, and rows whose images are not files of the data set."""
    import pyarrow.compute as pc

    nothing = 0
    for chunk in encoded.data.column(column).chunks:
        nothing += pc.sum(pc.is_null(pc.struct_field(chunk, "bytes"))).as_py() or 0
        nothing += chunk.null_count
    if not nothing:
        return
    for row, image in enumerate(encoded.with_format(None)[column]):
        if not image or not image["bytes"]:
            _file_of(where, image, row, column, folders)


def _file_of(where: str, image: Any, row: int, column: str, folders: Sequence[Path]) -> Path:
    place = f"data set {where}, column {column!r}, row {row} (counted from 0)"
    if not image or image["path"] is None:
        raise UserError(f"{place}: no image")
    return resolve_inside(image["path"], folders[:1], folders, place)


def _fetcher(where: str, encoded: Any, column: str, folders: Sequence[Path]) -> Fetch:
    def fetch(positions: Indices) -> list[Encoded]:
        rows = positions.tolist()
        images = []
        for row, image in zip(rows, encoded[rows][column], strict=True):
            if image["bytes"]:
                name = f"{image['path'] or 'without a name'} (row {row} of {where})"
                images.append(Encoded(name, content=image["bytes"]))
            else:
                path = _file_of(where, image, row, column, folders)
                images.append(Encoded(str(path), path=path))
        return images

    return fetch
