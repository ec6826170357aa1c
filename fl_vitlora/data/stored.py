"""Opens data sets that the library `datasets` has saved, and parquet files of the hub.

The library opens only the files that this module names, and downloads nothing. Therefore a data
set's folder cannot make the program run code or contact a server.
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
LFS_POINTER = b"version https://git-lfs"  # without Git LFS, a short text replaces each large file
DATA = "data"  # the folder of the parquet files in a data set of the hub


def is_saved(path: Path) -> bool:
    """Returns True if the library `datasets` has written the folder with `save_to_disk`.

    Args:
        path: The path of the folder.
    """
    return (path / "dataset_dict.json").exists() or (path / "state.json").exists()


def open_saved(path: Path) -> Mapping[str, Any]:
    """Opens a data set that the library `datasets` has written with `save_to_disk`.

    Args:
        path: The path of the folder of the data set.

    Returns:
        A dictionary from the name of each split to its rows.

    Raises:
        UserError: When the data set is damaged, or when it names files outside of its folder.
    """
    with _local(path):
        import datasets

        if not (path / "dataset_dict.json").exists():
            _expect_own_files(path)
            return {"train": datasets.load_from_disk(str(path.resolve()))}
        names = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise UserError(f"data set {path}: {name!r} is not a valid name of a split")
            _expect_own_files(path / name)
        return {
            name: datasets.Dataset.load_from_disk(str((path / name).resolve())) for name in names
        }


def open_parquet(root: Path, files: Mapping[str, Sequence[Path]]) -> Mapping[str, Any]:
    """Opens the parquet files of all splits.

    Args:
        root: The folder of the data set, for messages.
        files: A mapping from the name of each split to the paths of its files.

    Returns:
        A dictionary from the name of each split to its rows.

    Raises:
        UserError: When a file is damaged or was not downloaded, or when the files of a split have
            different columns.
    """
    with _local(root):
        return {split: _read_parquet(root, paths) for split, paths in files.items()}


def _read_parquet(root: Path, paths: Sequence[Path]) -> Any:
    """Reads the parquet files of one split. The labels remain the numbers that the split states.

    Raises:
        UserError: When a file was not downloaded, or has other columns than the first file.
    """
    import datasets
    import pyarrow.parquet
    from datasets.data_files import DataFilesDict, DataFilesList
    from datasets.packaged_modules.parquet.parquet import Parquet

    for path in paths:
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(
                    f"data set {root}: {path} is only a pointer to a file that was not downloaded; "
                    "run this command in the folder: git lfs pull"
                )
    kinds = [
        datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(path)) for path in paths
    ]
    for path, kind in zip(paths, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"data set {root}: expected the same columns and class names in all files, but "
                f"{path} and {paths[0]} have different columns or class names"
            )
    # With these marks, the library's cache treats changed files as another data set.
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
    """Groups parquet or tar files by split, with the rules of the Hugging Face hub.

    If the name of a file begins with the name of a split, the file belongs to this split.
    Otherwise, if a folder in the path of the file has the name of a split, the file belongs to this
    split. Otherwise, the file belongs to the split "train".

    Args:
        where: The folder of the data set, for messages.
        names: The paths of the files, relative to the folder.
        config_name: The name of the configuration to use, or None. If a data set has several
            configurations, each configuration has its own folder.

    Returns:
        A dictionary from the name of each split to the paths of its files.

    Raises:
        UserError: When the wanted configuration does not exist, or when there are several
            configurations and `config_name` is None.

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
    """Returns the folder for the tables that the library `datasets` makes from parquet files.

    The result is the cache folder of the library `datasets`, or a temporary folder if the cache is
    not writable.
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
    """Makes a temporary folder that is removed when the program ends."""
    return tempfile.TemporaryDirectory(prefix="fl_vitlora-", ignore_cleanup_errors=True)


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """Keeps the library `datasets` silent and offline inside a `with` block.

    Raises:
        UserError: When the code inside the block raises an error. The message has one line.
    """
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.disable_progress_bars()  # bars would be printed before an error message
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
    """Checks that a saved data set names only files of its own folder.

    Raises:
        UserError: When the data set names another file.
    """
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    for file in [*state.get("_data_files", []), *(state.get("_indices_files") or [])]:
        if Path(file["filename"]).name != file["filename"]:
            raise UserError(
                f"data set {path}: expected only files in its own folder, got {file['filename']!r}"
            )


def _mark(path: Path) -> tuple[str, ...]:
    """Returns the path of a file, the time of its last change, and its size."""
    status = os.stat(path)  # noqa: PTH116
    return (str(path.resolve()), str(status.st_mtime_ns), str(status.st_size))
