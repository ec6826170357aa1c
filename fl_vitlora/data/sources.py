"""Where images come from: the bundled digits, the Hugging Face hub, a saved data set, a folder.

Every source ends in the same value, `Images`: labels in memory, pixels read when they are asked
for, so that a data set larger than memory can be encrypted shard by shard.

n images of H × W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.config import DataConfig
from fl_vitlora.data.image_folder import read_image_folder
from fl_vitlora.errors import UserError

Indices = NDArray[np.int64]
TEST_SPLITS = ("test", "validation", "valid", "val")
SPLIT_SEED = 0  # the test images of a source are the same in every run
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # with or without its owner
ROWS_AT_ONCE = 64  # of a data set, not decoded yet


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images that are read on demand.

    Attributes:
        labels: int64 (n,), from 0.
        class_names: One for each label.
        read: Takes positions, H and W, returns RGB pixels, uint8 (len(positions), 3, H, W).
    """

    labels: Indices
    class_names: tuple[str, ...]
    read: Callable[[Indices, int, int], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, positions: Indices) -> Images:
        """Keeps only some images, in the order given."""
        return replace(
            self,
            labels=self.labels[positions],
            read=lambda inner, height, width: self.read(positions[inner], height, width),
        )


def load(config: DataConfig) -> tuple[Images, Images]:
    """Loads training and test images.

    Args:
        config: Which source.

    Returns:
        Training images and test images; a fixed, stratified share is held out for testing where
        the source has no test split of its own.

    Raises:
        UserError: When the source is not found or not understood.
    """
    if config.name == "digits":
        train, test = _hold_out(_digits(), config.test_fraction)
    else:
        train, test = _hugging_face(config)
    return _limit(train, config.limit), _limit(test, config.limit)


def _digits() -> Images:
    """Reads the 1,797 handwritten digits of UCI that scikit-learn bundles (8 × 8, 17 levels)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).mul(255 / 16).round()

    def read(positions: Indices, height: int, width: int) -> Tensor:
        small = grey[torch.from_numpy(positions)].unsqueeze(1)
        large = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")
        return large.round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()

    names = tuple(str(name) for name in bunch.target_names)
    return Images(labels=bunch.target.astype(np.int64), class_names=names, read=read)


def _hold_out(images: Images, fraction: float) -> tuple[Images, Images]:
    from sklearn.model_selection import train_test_split

    try:
        train, test = train_test_split(
            np.arange(len(images)),
            test_size=fraction,
            stratify=images.labels,
            random_state=SPLIT_SEED,
        )
    except ValueError as error:
        raise UserError(f"data.test_fraction {fraction} cannot be held out: {error}") from None
    return images.select(train), images.select(test)


def _limit(images: Images, limit: int | None) -> Images:
    """Keeps a fixed random selection, so that no class is lost to the order of the source."""
    if limit is None or limit >= len(images):
        return images
    return images.select(np.random.default_rng(SPLIT_SEED).permutation(len(images))[:limit])


def _hugging_face(config: DataConfig) -> tuple[Images, Images]:
    splits = _open_local(Path(config.name)) or _open_hub(config.name)
    first = splits["train"] if "train" in splits else next(iter(splits.values()))
    image_column = config.image_column or _image_column(first)
    label_column = config.label_column or _label_column(first)
    for column in (image_column, label_column):
        if column not in first.column_names:
            raise UserError(f"{config.name} has no column {column!r}, only {first.column_names}")
    _expect_labels(first, label_column)
    names = _class_names(first, label_column)
    parts = {
        split: _from_rows(rows, image_column, label_column, names) for split, rows in splits.items()
    }
    held_out = [parts[name] for name in TEST_SPLITS if name in parts]
    if "train" in parts and held_out:
        return parts["train"], held_out[0]
    return _hold_out(parts.get("train", next(iter(parts.values()))), config.test_fraction)


def _open_local(path: Path) -> Any:
    """Opens a saved data set or a folder of images; nothing if there is no such path."""
    import datasets

    if not path.exists():
        return None
    if not path.is_dir():
        raise UserError(f"data set {path}: expected a folder, got a file")
    datasets.disable_progress_bars()  # they would stand before the line that says what is wrong
    try:
        if (path / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(path))
        if (path / "state.json").exists():
            return {"train": datasets.load_from_disk(str(path))}
        listed = read_image_folder(path)
        if listed is not None:
            return listed
        return datasets.load_dataset("imagefolder", data_dir=str(path))
    except Exception as error:
        raise UserError(
            f"data set {path}: expected a saved data set or folders of images named after their "
            f"classes ({_first_line(error)})"
        ) from error
    finally:
        datasets.enable_progress_bars()


def _open_hub(name: str) -> Any:
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"data set {name!r}: no such folder; choose another one: --dataset FOLDER")
    import datasets

    try:
        return datasets.load_dataset(name)
    except Exception as error:
        raise UserError(
            f"data set {name!r} is neither 'digits', nor a local path, nor to be had from the "
            f"Hugging Face hub ({_first_line(error)}); offline, give a path: --dataset FOLDER"
        ) from error


def _image_column(rows: Any) -> str:
    import datasets

    found = [n for n, kind in rows.features.items() if isinstance(kind, datasets.Image)]
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
    for name in ("label", "labels", "fine_label", "target", "class"):
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


def _class_names(rows: Any, label_column: str) -> tuple[str, ...]:
    kind = rows.features[label_column]
    names = kind.names if hasattr(kind, "names") else sorted(set(rows[label_column][:]))
    return tuple(str(name) for name in names)


def _from_rows(rows: Any, image_column: str, label_column: str, names: tuple[str, ...]) -> Images:
    position = {name: number for number, name in enumerate(names)}
    values = rows[label_column][:]  # in one piece; a column gives its rows one by one
    if hasattr(rows.features[label_column], "names"):
        labels = np.asarray(values, dtype=np.int64)
    else:
        unknown = sorted({str(value) for value in values} - position.keys())
        if unknown:
            raise UserError(f"labels {unknown[:5]} of one split are missing in the training split")
        labels = np.asarray([position[str(value)] for value in values], dtype=np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(f"column {label_column!r} holds images without a label (-1)")
    images, mode = _encoded(rows, image_column), rows.features[image_column].mode
    return Images(
        labels=labels,
        class_names=names,
        read=lambda positions, *size: _read_rows(images, mode, positions, *size),
    )


def _encoded(rows: Any, image_column: str) -> Any:
    """Keeps the images alone, as files or as their bytes, to be decoded one by one."""
    import datasets

    kind = rows.features[image_column]
    if not isinstance(kind, datasets.Image):
        raise UserError(f"column {image_column!r} holds {kind}, no images")
    alone = rows.select_columns(image_column).with_format(None)
    return alone.cast_column(image_column, datasets.Image(decode=False))


def _read_rows(
    images: Any, mode: str | None, positions: Indices, height: int, width: int
) -> Tensor:
    import datasets
    from PIL import Image

    (column,) = images.column_names
    decode = datasets.Image(mode=mode).decode_example
    pixels = np.empty((len(positions), 3, height, width), dtype=np.uint8)
    for start in range(0, len(positions), ROWS_AT_ONCE):
        rows = images[positions[start : start + ROWS_AT_ONCE].tolist()][column]
        for number, row in enumerate(rows, start):
            try:
                image = decode(row).convert("RGB")
            except Exception as error:  # Pillow's, of any kind, a decompression bomb's among them
                where = row["path"] or f"{positions[number]} of the data set"
                raise UserError(f"image {where} cannot be read: {_first_line(error)}") from None
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BICUBIC)
            pixels[number] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
