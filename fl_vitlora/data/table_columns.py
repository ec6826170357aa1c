"""Finds the column of image paths and the column of labels, with the first row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fl_vitlora.config import DataConfig
from fl_vitlora.data.listing import DICOM_SUFFIXES, IMAGE_SUFFIXES, suffix_of
from fl_vitlora.errors import UserError

IMAGE_COLUMNS = (
    *("file_name", "image", "img", "picture", "photo", "image_path", "img_path"),
    *("file_path", "filepath", "filename", "file", "path"),
)
LABEL_COLUMNS = ["label", "labels", "fine_label", "target", "class", "class_name", "category"]
SPLIT_COLUMN = "split"


def find_image_column(name: str, first: Mapping[str, Any], config: DataConfig) -> str:
    """Finds the column of image paths by the setting, by a usual name, or by suffixes of images.

    Args:
        name: The name of the table, for messages.
        first: The first row, as a mapping from names of columns to values.
        config: The settings of the data, which may name the column.

    Returns:
        The name of the column.

    Raises:
        UserError: When no column, or more than one column, can hold image paths.
    """
    columns = list(first)
    if config.image_column:
        return _expect_column(name, config.image_column, columns)
    for column in IMAGE_COLUMNS:
        if column in columns:
            return column
    endings = IMAGE_SUFFIXES | DICOM_SUFFIXES
    found = [column for column in columns if suffix_of(str(first[column])) in endings]
    if len(found) != 1:
        raise UserError(
            f"table {name}: expected one column of image paths among {columns}; name the column to "
            "use: --set data.image_column=NAME"
        )
    return found[0]


def find_label_column(
    name: str, columns: Sequence[str], image_column: str, config: DataConfig
) -> str:
    """Finds the column of labels by the setting or a usual name, otherwise the only other column.

    Args:
        name: The name of the table, for messages.
        columns: The names of all columns.
        image_column: The name of the column of image paths.
        config: The settings of the data, which may name the columns of labels and of clients.

    Returns:
        The name of the column.

    Raises:
        UserError: When no column can hold labels.
    """
    if config.label_column:
        return _expect_column(name, config.label_column, columns)
    for column in LABEL_COLUMNS:
        if column in columns and column != config.client_column:
            return column
    others = (image_column, SPLIT_COLUMN, config.client_column)
    left = [column for column in columns if column not in others]
    if len(left) != 1:
        raise UserError(
            f"table {name}: found no label column among {columns}; name the column to use: --set "
            "data.label_column=NAME"
        )
    return left[0]


def _expect_column(name: str, column: str, columns: Sequence[str]) -> str:
    """Checks that a table has a column, and returns the name of the column.

    Raises:
        UserError: When the table does not have the column.
    """
    if column not in columns:
        raise UserError(f"table {name} has no column {column!r}, only {list(columns)}")
    return column
