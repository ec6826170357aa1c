"""Finds the columns with images and labels in a data set, and checks that no value is missing.

Letters in shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Encoded, Fetch, Part, labels_of, number_classes, plain_name
from fl_vitlora.data.clients import expect_column, name_of, number_owners
from fl_vitlora.data.images import Indices, Name
from fl_vitlora.data.labels import UNLABELLED, class_of, expect_no_mark
from fl_vitlora.data.places import resolve_inside
from fl_vitlora.data.table_columns import IMAGE_COLUMNS, LABEL_COLUMNS
from fl_vitlora.errors import UserError


def find_columns(where: str, rows: Any, config: DataConfig) -> tuple[str, str]:
    """Finds the column of the images and the column of the labels.

    Args:
        where: The name of the data set, for messages.
        rows: The rows of a split, as a data set of the library `datasets`.
        config: The settings of the data, which may name the columns.

    Returns:
        The names of the image column and of the label column.

    Raises:
        UserError: When a column does not exist or cannot be found. The message names the setting
            that chooses the column.
    """
    image_column = config.image_column or _image_column(rows)
    label_column = config.label_column or _label_column(rows, config.client_column)
    for column in (image_column, label_column):
        if column not in rows.column_names:
            raise UserError(f"data set {where} has no column {column!r}, only {rows.column_names}")
    _expect_values("data.label_column", rows, label_column)
    _expect_images(rows, image_column)
    if config.client_column:
        expect_column(where, config.client_column, rows.column_names)
        _expect_values("data.client_column", rows, config.client_column)
    return image_column, label_column


def has_no_labels(rows: Any, label_column: str) -> bool:
    """Returns True if no image of a split has a label.

    Args:
        rows: The rows of the split, as a data set of the library `datasets`.
        label_column: The name of the column with the labels.
    """
    if label_column not in rows.column_names:
        return True
    values = set(rows.with_format(None)[label_column][:])
    return len(rows) > 0 and values <= {None, UNLABELLED}


def to_part(
    where: str,
    rows: Any,
    columns: tuple[str, str],
    folders: Sequence[Path],
    client_column: str | None = None,
) -> Part:
    """Creates a `Part` from the rows of one split.

    Args:
        where: The names of the data set and of the split, for messages.
        rows: The rows of the split, as a data set of the library `datasets`.
        columns: The names of the image column and of the label column.
        folders: The folders that may contain the image files that rows name.
        client_column: The name of the column that names the client of each image; None to read no
            clients. If the split lacks this column, the images of the split have no owners.

    Returns:
        The split as a `Part`.

    Raises:
        UserError: When a row has no label, image or client; the message names the row and the
            column.
    """
    image_column, label_column = columns
    _expect_images(rows, image_column)
    labels, names = _read_labels(where, rows, label_column)
    encoded = _encoded(rows, image_column)
    _check_images(where, encoded, image_column, folders)
    owners, clients = _read_owners(where, rows, client_column)
    return Part(
        labels=labels,
        names=names,
        fetch=_fetcher(where, encoded, image_column, folders),
        mode=getattr(rows.features[image_column], "mode", None),
        owners=owners,
        clients=clients,
    )


def _image_column(rows: Any) -> str:
    """Finds the image column by its type, otherwise by bytes in a column, otherwise by its name.

    Raises:
        UserError: When no column can hold the images, or when several columns can hold the images.
    """
    import datasets

    found = [n for n, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not found:
        found = [name for name, kind in rows.features.items() if _holds_bytes(kind)]
    if not found:
        texts = [n for n, kind in rows.features.items() if _is_text(kind) and n in IMAGE_COLUMNS]
        found = texts[:1]
    if len(found) != 1:
        raise UserError(
            f"expected one image column, found {found} among {rows.column_names}; name the column "
            "to use: --set data.image_column=NAME"
        )
    return str(found[0])


def _label_column(rows: Any, client_column: str | None) -> str:
    """Finds the label column; chooses the column with the most classes if there are several.

    CIFAR-100, for example, has a column of fine labels and a column of coarse labels. The column of
    the clients is never the label column.

    Raises:
        UserError: When there is no label column.
    """
    import datasets

    kinds = {name: kind for name, kind in rows.features.items() if name != client_column}
    labels = {name: kind for name, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)}
    if labels:
        return str(max(labels, key=lambda name: labels[name].num_classes))
    for name in LABEL_COLUMNS:
        if name in kinds:
            return name
    raise UserError(
        f"found no label column among {rows.column_names}; name the column to use: --set "
        "data.label_column=NAME"
    )


def _expect_values(setting: str, rows: Any, column: str) -> None:
    """Checks that a column holds single values, such as labels, and not images or lists.

    Raises:
        UserError: When the column holds other values. The message names the setting of the column.
    """
    import datasets

    kind = rows.features[column]
    if not isinstance(kind, datasets.ClassLabel | datasets.Value):
        what = "labels" if setting == "data.label_column" else "names of clients"
        raise UserError(
            f"{setting} {column}: expected a column of {what}, got the type {type(kind).__name__}"
        )


def _expect_images(rows: Any, image_column: str) -> None:
    """Checks that a column exists and can hold images.

    Raises:
        UserError: When the column does not exist or cannot hold images.
    """
    import datasets

    if image_column not in rows.column_names:
        raise UserError(
            f"expected the column {image_column!r} in every split, but one split has only "
            f"{rows.column_names}"
        )
    kind = rows.features[image_column]
    if not (isinstance(kind, datasets.Image) or _holds_bytes(kind) or _is_text(kind)):
        raise UserError(f"column {image_column!r}: expected images, got values of the type {kind}")


def _holds_bytes(kind: Any) -> bool:
    """Returns True if a column contains the bytes of files, with or without paths of the files."""
    if isinstance(kind, Mapping):
        return "bytes" in kind and set(kind) <= {"bytes", "path"}
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _is_text(kind: Any) -> bool:
    return getattr(kind, "dtype", None) in ("string", "large_string")


def _read_labels(where: str, rows: Any, column: str) -> tuple[Indices, tuple[str, ...]]:
    """Reads the labels and the class names of a split, with the split's own numbers of classes.

    Raises:
        UserError: When a row has no label, or has a value that cannot be the name of a class.
    """
    values = rows.with_format(None)[column][:]  # reads all rows at once
    place = f"data set {where}, column {column!r}, row"
    named = getattr(rows.features[column], "names", None)
    if named is not None:
        for row, value in enumerate(values):
            if value is None or value < 0:
                found = "no label" if value is None else f"no label ({value})"
                raise UserError(f"{place} {row} (counted from 0): {found}")
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


def _read_owners(
    where: str, rows: Any, column: str | None
) -> tuple[Indices | None, tuple[Name, ...]]:
    """Reads the client of each image, and the names of the clients.

    Returns:
        The numbers of the clients, int64 (n,), and the names of the clients. If the column does not
        exist, None and ().

    Raises:
        UserError: When a row has no client, or has a value that cannot be the name of a client.
    """
    if column is None or column not in rows.column_names:
        return None, ()
    _expect_values("data.client_column", rows, column)
    values = rows.with_format(None)[column][:]
    named = getattr(rows.features[column], "names", None)
    if named is not None:  # -1 is the library's mark for "no class"
        values = [None if value is None or value < 0 else named[value] for value in values]
    place = f"data set {where}, column {column!r}, row"
    names = [name_of(v, f"{place} {row} (counted from 0)") for row, v in enumerate(values)]
    return number_owners(names, lambda row: f"{place} {row} (counted from 0)")


def _encoded(rows: Any, image_column: str) -> Any:
    """Returns the column of encoded images, in which each row has the bytes or path of a file."""
    import datasets

    alone = rows.select_columns(image_column).with_format(None)
    return alone.cast_column(image_column, datasets.Image(decode=False))


def _check_images(where: str, encoded: Any, column: str, folders: Sequence[Path]) -> None:
    """Checks that each row has an image, either as bytes or as a file of the data set.

    Raises:
        UserError: When a row has no image, or names a file that is not in one of the folders.
    """
    import pyarrow.compute as pc

    without_bytes = 0
    for chunk in encoded.data.column(column).chunks:
        without_bytes += pc.sum(pc.is_null(pc.struct_field(chunk, "bytes"))).as_py() or 0
        without_bytes += chunk.null_count
    if not without_bytes:
        return
    for row, image in enumerate(encoded.with_format(None)[column]):
        if not image or not image["bytes"]:
            _file_of(where, image, row, column, folders)


def _file_of(where: str, image: Any, row: int, column: str, folders: Sequence[Path]) -> Path:
    """Finds the image file that a row names.

    Raises:
        UserError: When the row names no file, or names a file that is not in one of the folders.
    """
    place = f"data set {where}, column {column!r}, row {row} (counted from 0)"
    if not image or image["path"] is None:
        raise UserError(f"{place}: expected an image, found none")
    return resolve_inside(image["path"], folders[:1], folders, place)


def _fetcher(where: str, encoded: Any, column: str, folders: Sequence[Path]) -> Fetch:
    """Returns a function that takes positions and returns the images at these positions."""

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
