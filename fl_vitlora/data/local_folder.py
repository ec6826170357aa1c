"""Finds the format and the splits of a data set in a local folder.

A split is a part of the data set, for training or testing. A folder contains a data set in one of
five formats: a data set that the library `datasets` saved, parquet files, tar files, a table of
images, or folders of images by class. Files of other formats are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import Part, count
from fl_vitlora.data.columns import find_columns, has_no_labels, to_part
from fl_vitlora.data.dicom import INSTALL, can_read_dicom
from fl_vitlora.data.identity import of_folder, of_rows
from fl_vitlora.data.image_folder import read_layout, to_parts, without_labels
from fl_vitlora.data.listing import (
    File,
    Listing,
    count_kinds,
    is_dicom,
    list_folder,
    suffix_of,
)
from fl_vitlora.data.splits import Choice, choose_splits
from fl_vitlora.data.stored import group_shards, is_saved, open_parquet, open_saved
from fl_vitlora.data.tables import SUFFIXES, find_tables, only_table, read_tables
from fl_vitlora.data.tars import read_tars
from fl_vitlora.errors import UserError

SILENT = frozenset(("dataset_info.json", "readme.md", "license", "license.txt"))


@dataclass(frozen=True, kw_only=True)
class Found:
    """The splits of a data set.

    Attributes:
        choice: The names of the splits for training and for testing.
        sizes: A mapping from the name of each split to the number of its images.
        part: A function that takes the name of a split and returns the split's labels and images as
            a `Part`.
        notes: Texts that say which files are not used. These texts do not mention splits that are
            not used.
        identity: The identity of the data set (`data.identity`); None if the data set has no
            identity.
    """

    choice: Choice
    sizes: Mapping[str, int]
    part: Callable[[str], Part]
    notes: tuple[str, ...] = ()
    identity: str | None = None


def open_folder(config: DataConfig) -> Found:
    """Opens a data set in a local folder.

    Args:
        config: The settings of the data. The setting `data.name` is the path of the folder.

    Returns:
        The splits of the data set, and the choice of the splits to use.

    Raises:
        UserError: When the folder does not contain a data set, or can be understood in two ways.
    """
    path = Path(config.name)
    if not path.is_dir():
        raise UserError(f"data set {path}: expected a folder, got a file")
    if config.revision:
        raise UserError(
            f"data.revision is only for data sets of the Hugging Face hub; {path} is a local folder"
        )
    identity = of_folder(path)  # this comes first: the identity must not be newer than the images
    if is_saved(path):
        found = from_rows(str(path), open_saved(path), config, [path])
    else:
        found = _open_listing(path, list_folder(path, dicom=can_read_dicom()), config)
    return replace(found, identity=identity)


def from_rows(
    where: str, splits: Mapping[str, Any], config: DataConfig, folders: Sequence[Path]
) -> Found:
    """Finds the columns of images and labels in stored rows, and chooses the splits.

    Args:
        where: The name of the data set, for messages.
        splits: The rows of each split, as data sets of the library `datasets`.
        config: The settings of the data, which may name columns and splits.
        folders: The folders that may contain the image files that rows name.

    Returns:
        The splits of the data set, and the choice of the splits to use.

    Raises:
        UserError: When the data set has no splits, or when its columns or the wanted splits cannot
            be found.
    """
    names = list(splits)
    if not names:
        raise UserError(f"data set {where} has no splits; expected at least one")
    train = choose_splits(where, names, config).train if len(names) > 1 else names[0]
    columns = find_columns(where, splits[train], config)
    bare = {name for name in names if name != train and has_no_labels(splits[name], columns[1])}
    return Found(
        choice=choose_splits(where, names, config, bare),
        sizes={name: len(rows) for name, rows in splits.items()},
        part=lambda name: to_part(
            f"{where}, split {name}", splits[name], columns, folders, config.client_column
        ),
        identity=of_rows(splits, columns[0]),
    )


def _open_listing(path: Path, listing: Listing, config: DataConfig) -> Found:
    """Finds the format of a data set from the files of its folder, and opens the data set.

    Raises:
        UserError: When the files fit several formats or none.
    """
    parquet = [f.name for f in listing.others if suffix_of(f.name) == ".parquet"]
    tars = [f.name for f in listing.others if suffix_of(f.name) == ".tar"]
    tables = find_tables(listing)
    if config.config and not (parquet or tars):
        raise UserError(
            f"data.config is only for data sets with several configurations, as on the hub; {path} "
            "has no configurations"
        )
    wanted = config.layout
    if wanted == "table":
        tables = tables or only_table(listing)
        if not tables:
            raise UserError(
                f"data set {path}: data.layout=table needs a table such as metadata.csv, but the "
                "folder has no table"
            )
        return _from_tables(path, listing, tables, config)
    if wanted == "auto" and (config.partition != "natural" or config.client_column):
        kinds = [
            name
            for name, there in (("parquet files", parquet), ("tar files", tars), ("tables", tables))
            if there
        ]
        if len(kinds) > 1 or (kinds and kinds != ["tables"] and listing.images):
            beside = [*kinds, "images"] if listing.images else kinds
            raise UserError(
                f"data set {path}: found {' and '.join(beside)}, but only one kind of file can be "
                "the data set; name a folder with only one kind, or set the layout: --set "
                "data.layout=splits or classes for folders of images, or table for a table"
            )
        if parquet:
            return _from_parquet(path, parquet, config, listing)
        if tars:
            return _from_tars(path, tars, config, listing)
        if tables or (listing.images and _only_flat(listing) and only_table(listing)):
            return _from_tables(path, listing, tables or only_table(listing), config)
    if not listing.images:
        raise UserError(
            f"data set {path}: expected a saved data set or folders of images named after their "
            f"classes, found no image{_found_instead(listing)}"
        )
    return _from_images(path, listing, config)


def _only_flat(listing: Listing) -> bool:
    """Returns True if all images are in the same folder."""
    return len({file.parts[:-1] for file in listing.images}) == 1


def _from_images(path: Path, listing: Listing, config: DataConfig) -> Found:
    """Opens folders of images by class.

    Raises:
        UserError: When a setting names a column of clients, because folders have no columns.
    """
    if config.client_column:
        raise UserError(
            f"data.client_column {config.client_column}: data set {path} has folders of images and "
            "no columns; add a table such as metadata.csv, or make a folder for each client "
            "and set data.partition=natural"
        )
    items = read_layout(listing, config)
    parts = to_parts(path, items)
    sizes = {split: sum(item.split == split for item in items) for split in parts}
    links = len(listing.images) - len(items)
    notes = [f"{count(links, 'link')} to images that are counted already"] if links else []
    return Found(
        choice=(
            choose_splits(str(path), list(parts), config, without_labels(items))
            if "" not in parts
            else _expect_no_choice(path, config)
        ),
        sizes=sizes,
        part=lambda split: parts[split],
        notes=(*notes, *_notes(listing, [])),
    )


def _expect_no_choice(path: Path, config: DataConfig) -> Choice:
    """Returns the choice for a data set without splits: all images are for training.

    Raises:
        UserError: When a setting names a split.
    """
    for setting in ("train_split", "test_split", "validation_split"):
        if getattr(config, setting) not in (None, "none"):
            raise UserError(
                f"data set {path} has no splits, so data.{setting} must not name a split; remove "
                "this setting"
            )
    return Choice(train="", test=None, unused=())


def _from_tables(path: Path, listing: Listing, tables: Sequence[str], config: DataConfig) -> Found:
    """Opens the images whose paths a table lists."""
    parts = read_tables(listing, tables, config)
    used = sum(len(part) for part in parts.values())
    left = len(listing.images) - used
    notes = [f"{count(left, 'image')} that no table names"] if left > 0 else []
    return Found(
        choice=choose_splits(str(path), list(parts), config),
        sizes={split: len(part) for split, part in parts.items()},
        part=lambda split: parts[split],
        notes=(*notes, *_notes(listing, tables)),
    )


def _from_parquet(path: Path, names: Sequence[str], config: DataConfig, listing: Listing) -> Found:
    """Opens a data set of parquet files."""
    grouped = group_shards(path, names, config.config)
    _expect_distinct(path, listing, names)
    files = {split: [path / name for name in shards] for split, shards in grouped.items()}
    found = from_rows(str(path), open_parquet(path, files), config, [path])
    used = [name for shards in grouped.values() for name in shards]
    return Found(
        choice=found.choice, sizes=found.sizes, part=found.part, notes=_notes(listing, used)
    )


def _from_tars(path: Path, names: Sequence[str], config: DataConfig, listing: Listing) -> Found:
    """Opens a data set of tar files."""
    grouped = group_shards(path, names, config.config)
    _expect_distinct(path, listing, names)
    parts, unused = {}, 0
    for split, shards in grouped.items():
        parts[split], more = read_tars([path / name for name in shards], config)
        unused += more
    used = [name for shards in grouped.values() for name in shards]
    notes = [f"{count(unused, 'member')} of tar files"] if unused else []
    return Found(
        choice=choose_splits(str(path), list(parts), config),
        sizes={split: len(part) for split, part in parts.items()},
        part=lambda split: parts[split],
        notes=(*notes, *_notes(listing, used)),
    )


def _expect_distinct(path: Path, listing: Listing, names: Sequence[str]) -> None:
    """Checks that no file occurs twice under different names, so that no image is used twice.

    Raises:
        UserError: When two of the names lead to the same file.
    """
    first: dict[tuple[int, int], str] = {}
    known = set(names)
    for file in listing.others:
        if file.name in known and first.setdefault(file.place, file.name) != file.name:
            raise UserError(
                f"data set {path}: {first[file.place]} and {file.name} are the same file; remove "
                "one of the two"
            )


def _notes(listing: Listing, used: Sequence[str]) -> tuple[str, ...]:
    """Returns texts with the numbers and the kinds of the files that were not read."""
    known = set(used)
    left = [
        file
        for file in listing.others
        if file.name not in known and file.parts[-1].lower() not in SILENT
    ]
    dicom = _dicom_files(listing.root, left)
    scans = {file.name for file in dicom}
    others = [file for file in left if file.name not in scans]
    notes = []
    if dicom:
        notes.append(f"{count(len(dicom), 'DICOM file')} (to read them: {INSTALL})")
    if others:
        notes.append(f"files that are not images: {count_kinds(others)}")
    return tuple(notes)


def _dicom_files(root: Path, files: Sequence[File]) -> list[File]:
    """Returns those of the given files that are DICOM images."""
    return [file for file in files if is_dicom(str(root / file.name), file.name)]


def _found_instead(listing: Listing) -> str:
    """Returns the end of an error message, with the kinds of files in a folder without images."""
    if not listing.others:
        return " and no other file"
    dicom = _dicom_files(listing.root, listing.others)
    if dicom:
        return f" but {count(len(dicom), 'DICOM file')}; to read them: {INSTALL}"
    hint = (
        "; a table of images is read with --set data.layout=table"
        if any(suffix_of(file.name) in SUFFIXES for file in listing.others)
        else ""
    )
    return f" but {count_kinds(listing.others)}{hint}"
