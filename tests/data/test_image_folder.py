"""A folder that is listed is what the library makes of it; any other is left to the library."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fl_vitlora.config import DataConfig
from fl_vitlora.data.image_folder import read_image_folder
from fl_vitlora.data.sources import load
from fl_vitlora.errors import UserError

PLAIN = [
    ["cat/1.png", "dog/1.png"],
    ["cat/10.png", "cat/2.png", "cat/1.JPG", "cat-b/1.png", "cat.b/1.bmp", "Dog/1.webp"],
    ["train/cat/1.png", "train/dog/1.png", "test/dog/1.png", "test/dog/0.png"],
    ["train/a/1.png", "train/b/1.png", "val/a/test.png", "test/c/train-1.png"],
    ["train/a/1.png", "train/b/1.png", "valid/b/1.gif"],
    ["Train/a.png", "latest/b.png"],
]
OTHER = [
    [],
    ["1.png", "2.png"],
    ["cat/1.png"],
    ["cat/1.png", "dog/1.png", "README.md"],
    ["cat/1.png", "dog/1.png", "metadata.csv"],
    ["cat/1.png", "dog/1.png", "dog/.2.png"],
    ["cat/1.png", "dog/1.png", "__old/2.png"],
    ["cat/1.png", "dog/train-1.png"],
    ["cat/1.png", "data/part-00000-of-00001.png"],
    ["train/1.png", "cat/1.png"],
    ["train/cat/1.png", "train/dog/1.png", "train/dog/old/1.png"],
    ["train/cat/1.png", "train/dog/1.png", "more/dog/1.png"],
    ["train/cat/1.png", "train/dog test/1.png"],
    ["train/cat/1.png", "train/dog/1.png", "val/dog/1.png", "valid/dog/1.png"],
    ["train/cat/1.png", "test/dog/1.png"],
    ["test/cat/1.png", "test/dog/1.png"],
]
SPLITS = st.sampled_from(["train", "test", "val", "validation"])
CLASSES = st.sampled_from(["cat", "dog", "cat-2", "Train", "contest", "cat_test"])
FILES = st.sampled_from(["0.png", "2.png", "10.PNG", "b.jpg", "latest.png", "x-test.png"])
LAYOUTS = st.sets(st.tuples(CLASSES, FILES), max_size=5).map(
    lambda names: names | {("cat", "1.png"), ("dog", "1.png")}
) | st.sets(st.tuples(SPLITS, CLASSES, FILES), max_size=5).map(
    lambda names: names | {("train", "cat", "1.png"), ("train", "dog", "1.png")}
)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def lay_out(folder: Path, names: list[str]) -> Path:
    """Puts files there, each of which knows its name."""
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def rows(splits: Any) -> dict[str, Any]:
    """Tells all that is in splits: the classes, and each file with its class."""
    told = {}
    for split, content in splits.items():
        plain = content.cast_column("image", datasets.Image(decode=False))
        paths = [image["path"] for image in plain["image"][:]]
        names = content.features["label"].names
        told[split] = (names, list(zip(paths, content["label"][:], strict=True)))
    return told


def by_library(folder: Path) -> dict[str, Any]:
    return rows(datasets.load_dataset("imagefolder", data_dir=str(folder)))


@pytest.mark.parametrize("names", PLAIN, ids=" ".join)
def test_a_plain_folder_is_listed_as_by_the_library(tmp_path: Path, names: list[str]):
    folder = lay_out(tmp_path / "images", names)
    found = read_image_folder(folder)
    assert found is not None
    assert rows(found) == by_library(folder)
    assert list(found) == [split for split in ("train", "validation", "test") if split in found]


@pytest.mark.parametrize("names", OTHER, ids=" ".join)
def test_any_other_folder_is_left_to_the_library(tmp_path: Path, names: list[str]):
    assert read_image_folder(lay_out(tmp_path / "images", names)) is None


@settings(max_examples=60, deadline=None)
@given(names=LAYOUTS)
def test_what_is_listed_is_always_what_the_library_finds(
    tmp_path_factory: pytest.TempPathFactory, names: set[tuple[str, ...]]
):
    folder = lay_out(tmp_path_factory.mktemp("any") / "images", ["/".join(name) for name in names])
    found = read_image_folder(folder)
    if found is not None:
        assert rows(found) == by_library(folder)


def test_links_to_images_are_images_and_other_links_are_left_to_the_library(tmp_path: Path):
    folder = lay_out(tmp_path / "images", ["cat/1.png", "dog/1.png"])
    (folder / "dog" / "2.png").symlink_to(folder / "cat" / "1.png")
    found = read_image_folder(folder)
    assert found is not None
    assert rows(found) == by_library(folder)
    (folder / "dog" / "3.png").symlink_to(tmp_path / "nowhere")
    assert read_image_folder(folder) is None
    (folder / "dog" / "3.png").unlink()
    (folder / "eel").symlink_to(folder / "cat")
    assert read_image_folder(folder) is None


def test_a_link_to_a_folder_and_a_path_with_brackets_are_folders(tmp_path: Path):
    folder = lay_out(tmp_path / "[images]*", ["cat/1.png", "dog/1.png"])
    (tmp_path / "link").symlink_to(folder)
    direct, linked = read_image_folder(folder), read_image_folder(tmp_path / "link")
    assert direct is not None
    assert linked is not None
    assert rows(direct) == rows(linked)
    assert [label for _, label in rows(direct)["train"][1]] == [0, 1]


def test_where_there_is_no_folder_nothing_is_listed(tmp_path: Path):
    assert read_image_folder(tmp_path / "nowhere") is None


def test_a_file_that_is_no_image_is_one_clear_error(tmp_path: Path):
    folder = lay_out(tmp_path / "images", [])
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8)).save(folder / name / f"{number}.png")
    broken = folder / "dog" / "3.png"
    whole = broken.read_bytes()
    bomb = io.BytesIO()  # 50 kB that would be 1.2 GB
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    wrong_chunk = whole[:33] + b"\0\0\0\1zTXt" + whole[41:]
    for content in (b"no image", whole[:45], wrong_chunk, bomb.getvalue(), b""):
        broken.write_bytes(content)
        train, test = load(DataConfig(name=str(folder)))
        with pytest.raises(UserError, match=rf"image {broken} cannot be read: ") as caught:
            for images in (train, test):
                images.read(np.arange(len(images)), 8, 8)
        assert "\n" not in str(caught.value)
