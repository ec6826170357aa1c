"""Data sets as the `datasets` library and the hub store them: saved to disk, or parquet files.

They are opened without the library's search for files and without its downloads, so that nothing
in the folder is executed and nothing is called out to.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fl_vitlora.data.classes import name_some
from fl_vitlora.data.pixels import first_line
from fl_vitlora.data.splits import meaning_of
from fl_vitlora.errors import UserError

SHARD = re.compile(r"^([A-Za-z]+?)(?:[-_.]?\d[\d._-]*(?:of[-_]?\d+)?(?:[-_.].*)?)?$")
LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS holds instead of a file
DATA = "data"  # the folder in which the hub keeps parquet files


def is_saved(path: Path) -> bool:
    """Tells whether a folder was written by `save_to_disk`."""
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def open_saved(path: Path) -> Mapping[str, Any]:
    """Opens a data set that was written by `save_to_disk`.

    Raises:
        UserError: When it is damaged, or names files outside of its folder.
    """
    with _local(path):
        import datasets

        if not (path / "dataset_dict.json").exists():
            _expect_own_files(path)
            return {"train": datasets.load_from_disk(str(path.resolve()))}
        names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"data set {path}: {name!r} is no name of a split")
            _expect_own_files(path / name)
        return {
            name: datasets.Dataset.load_from_disk(str((path / name).resolve())) for name in names
        }


def open_parquet(root: Path, files: Mapping[str, Sequence[Path]]) -> Mapping[str, Any]:
    """Opens parquet files of several splits.

    Args:
        root: The folder of the data set, for messages.
        files: By split.
    """
    with _local(root):
        return {split: _read_parquet(root, paths) for split, paths in files.items()}


def _read_parquet(root: Path, paths: Sequence[Path]) -> Any:
    """Reads the files of one split, which may number its classes in a way of its own."""
    import datasets
    import pyarrow.parquet
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.parquet.parquet import Parquet

    for path in paths:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"data set {root}: {path} is a pointer to a file that was not downloaded; in "
                    "the clone: git lfs pull"
                )
    kinds = [
        datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path)) for path in paths
    ]
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"data set {root}: {path} has other columns or class names than {paths[0]}"
            )
    # The marks make files that have changed another data set in the library's cache.
    files = DataFilesList([str(path.resolve()) for path in paths], [_mark(path) for path in paths])
    builder = Parquet(
        cache_dir=str(cache_folder()),
        dataset_name="images",
        data_files=DataFilesDict({"train": files}),
    )
    builder.download_and_prepare(verification_mode="no_checks")
    return builder.as_dataset(split="train")


def group_shards(
    where: Path, names: Sequence[str], config_name: str | None
) -> dict[str, list[str]]:
    """Sorts parquet or tar files by the splits that they are named after, as the hub does.

    Args:
        where: The folder of the data set, for messages.
        names: Of the files, relative to it.
        config_name: The configuration, where files lie in a folder for each.

    Returns:
        Names by split: that of the file's beginning, else that of a folder, else "train".

    Raises:
        UserError: When there are several configurations and none is chosen.

    Example:
        >>> group_shards(Path("clone"), ["data/train-00000-of-00001.parquet"], None)
        {'train': ['data/train-00000-of-00001.parquet']}
    """
    configurations: dict[str, dict[str, list[str]]] = {}
    for name in names:
        *folders, file = name.split("/")
        start = SHARD.match(file.partition(".")[0])
        words = [start[1]] if start and meaning_of(start[1]) else []
        words += [folder for folder in reversed(folders) if meaning_of(folder)]
        own = [f for f in folders if not meaning_of(f) and f.lower() != DATA]
        splits = configurations.setdefault("/".join(own), {})
        splits.setdefault(words[0] if words else "train", []).append(name)
    if config_name is not None and config_name in configurations:
        return configurations[config_name]
    if len(configurations) > 1 or (config_name is not None and config_name):
        raise UserError(
            f"data set {where}: found the configurations {name_some(sorted(configurations))}; "
            "choose one: --set data.config=NAME"
        )
    return next(iter(configurations.values()))


@cache
def cache_folder() -> Path:
    """Returns a folder for tables that the library makes of parquet files.

    It is the library's own, or a temporary one where that cannot be written.
    """
    import datasets

    own = Path(datasets.config.HF_DATASETS_CACHE)
    try:
        own.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=own):
            return own
    except OSError:
        return Path(_temporary().name)


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Makes a folder that is removed when the program ends."""
    return tempfile.TemporaryDirectory(prefix="fl_vitlora-", ignore_cleanup_errors=True)


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """Keeps the library silent and offline, and tells what it raises in one line."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()  # they would stand before the line that says what is wrong
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"data set {path}: expected a saved data set, parquet files, or folders of images "
            f"named after their classes ({first_line(error.__cause__ or error)})"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
        datasets.enable_progress_bars()


def _expect_own_files(path: Path) -> None:
    """Refuses a saved data set whose state names files elsewhere."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for file in [*state.get("_data_files", []), *(state.get("_indices_files") or [])]:
        if Path(file["filename"]).name != file["filename"]:
            raise UserError(f"data set {path}: {file['filename']!r} is no file of its folder")


def _mark(path: Path) -> tuple[str, ...]:
    told = os.stat(path)  # noqa: PTH116
    return (str(path.resolve()), str(told.st_mtime_ns), str(told.st_size))
