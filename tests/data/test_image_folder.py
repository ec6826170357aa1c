"""Splits are the first folder only, below them every folder is a class, and no file is in two."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fl_vitlora.config import DataConfig
from fl_vitlora.data.sources import Images, Source, load, load_source
from fl_vitlora.errors import UserError

WORDS = {"train": "train training", "val": "val valid validation dev eval evaluation"}
WORDS |= {"test": "test testing"}
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words.split()}
HEADS = ["train", "Train", "training", "test", "TEST", "testing", "val", "valid", "dev", "eval"]
CLASSES = ["train", "test", "dev", "eval", "data", "bus", "test tube", "cat[1]", "a*b", "café"]
CLASSES += ["Test", "validation", "0-train", "images"]
FILES = ["0.png", "eval_0.png", "train-1.PNG", "test.png", "b.jpg", "test-00000-of-00001.bmp"]
LEFT = [".hidden.png", "Thumbs.db", ".DS_Store", "notes.txt", "labels.xml", "scan.h5"]
TREES = 300


def put(root: Path, names: list[str]) -> dict[tuple[int, ...], str]:
    """Puts an image of its own colour at each name that is one, and returns names by colour."""
    colours: dict[tuple[int, ...], str] = {}
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".bmp"):
            colour = (number // 16 * 16, number % 16 * 16, 128)
            colours[colour] = name
            Image.new("RGB", (2, 2), colour).save(path, "BMP")
        else:
            path.write_text("x")
    return colours


def found(images: Images, colours: dict[tuple[int, ...], str]) -> dict[str, str]:
    """Returns the files of a split, and the class of each file."""
    pixels = images.read(np.arange(len(images)), 2, 2)[:, :, 0, 0].tolist()
    names = [colours[tuple(colour)] for colour in pixels]
    assert len(set(names)) == len(names)  # every image once
    classes = [images.class_names[label] for label in images.labels]
    return dict(zip(names, classes, strict=True))


def oracle(names: list[str]) -> tuple[dict[str, str], dict[str, str] | None] | None:
    """What is trained on and tested on, a class by file; None for a folder that is refused."""
    images = [n.split("/") for n in names if n[-3:].lower() in ("png", "jpg", "bmp")]
    images = [parts for parts in images if not parts[-1].startswith(".")]
    heads = {parts[0] for parts in images}
    known = {head: SPLIT_OF[head.lower()] for head in heads if head.lower() in SPLIT_OF}
    if (known and set(known) != heads) or len(set(known.values())) < len(known):
        return None
    by_split: dict[str, dict[str, str]] = {}
    for parts in images:
        if len(parts) != (3 if known else 2):
            return None
        by_split.setdefault(known.get(parts[0], "train"), {})["/".join(parts)] = parts[-2]
    train = by_split.get("train", {})
    test = by_split.get("test") or by_split.get("val")
    fits = len(set(train.values())) > 1 and set((test or {}).values()) <= set(train.values())
    return (train, test) if fits else None


def tree(seed: int) -> list[str]:
    """Lays out a folder: often as people do, sometimes with a file or a folder out of place."""
    draw = random.Random(seed)
    order = draw.sample(HEADS, len(HEADS))
    clear = {SPLIT_OF[head.lower()]: head for head in order}
    heads = [clear["train"], clear["val"], clear["test"]] if draw.random() < 0.8 else order
    heads = heads[: draw.randint(1, 3)] if draw.random() < 0.7 else [""]
    known = [name for name in CLASSES if name.lower() not in SPLIT_OF]
    names_of_splits_too = heads != [""] or draw.random() < 0.3
    classes = draw.sample(CLASSES if names_of_splits_too else known, draw.choice([1, 2, 3, 4, 5]))
    names = {
        f"{head}/{name}/{draw.choice('0ab')}{file}".lstrip("/")
        for head in heads
        for name in classes
        for file in draw.sample(FILES, draw.randint(2, 4))
    }
    names |= {f"{draw.choice(sorted(names)).rpartition('/')[0]}/{draw.choice(LEFT)}"}
    if draw.random() < 0.25:  # something out of place
        place = draw.choice(["", "extra/", "train/", f"{heads[0]}/bus/deeper/", "test/new class/"])
        names.add(f"{place.lstrip('/')}odd.png")
    return sorted(names)


@pytest.mark.parametrize("part", range(10))
def test_any_folder_is_read_as_the_oracle_says(tmp_path: Path, part: int):
    accepted = 0
    for seed in range(part, TREES, 10):
        names = tree(seed)
        root = tmp_path / f"tree [{seed}] *"
        colours = put(root, names)
        expected = oracle(names)
        try:
            source = load_source(DataConfig(name=str(root), test_fraction=0.45))
        except UserError as error:
            held_out = expected is not None and expected[1] is None
            # A class of one image cannot be held out from; all else is refused by the rule only.
            assert expected is None or (held_out and "cannot be used for testing" in str(error)), (
                names
            )
            assert "\n" not in str(error)
            continue
        assert expected is not None, names
        train, test = found(source.train, colours), found(source.test, colours)
        assert not train.keys() & test.keys()
        if expected[1] is None:
            assert {**train, **test} == expected[0]
        else:
            assert (train, test) == expected
        accepted += 1
    assert accepted > TREES / 10 / 4


def read(root: Path, **settings: object) -> Source:
    return load_source(DataConfig(name=str(root), **settings))  # type: ignore[arg-type]


def refusal(root: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        read(root, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(*folders: str, images: int = 3) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(images)]


def test_a_class_named_after_a_split_is_a_class(tmp_path: Path):
    """Six test images were once trained on, as their class was named train."""
    names = files("train/bus", "train/train", "test/bus", "test/train", images=6)
    colours = put(tmp_path, names)
    source = read(tmp_path)
    assert found(source.train, colours) == {n: n.split("/")[1] for n in names if n[:5] == "train"}
    assert found(source.test, colours) == {n: n.split("/")[1] for n in names if n[:4] == "test"}


def test_one_line_tells_what_was_found(tmp_path: Path):
    put(tmp_path, [*files("Train/a", "Train/b", "val/a", "Test/b"), "Train/x.txt", "y.csv", "z.h5"])
    assert read(tmp_path).told == (
        "data: 6 images for training, 3 for testing (the split Test), 2 classes: a, b; not used: "
        "split val (3 images), files that are not images: 1 .txt, 1 .csv, 1 .h5"
    )
    put(tmp_path / "flat", files("a", "b", images=5))
    assert read(tmp_path / "flat").told == (
        "data: 8 images for training, 2 for testing (20 % held out of the training images), "
        "2 classes: a, b"
    )


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (files("test", "bus"), "test could be splits, or classes like bus.*data.layout=classes"),
        (files("train", "test"), "contain images and no class folders.*data.layout=classes"),
        (files("train/a", "train/b", "extra/a"), "splits, or classes like extra"),
        (files("train/a", "train/b", "test"), "the images of test have no labels.*test_split=none"),
        (files("train/a", "train/b", "test/images"), "the images of test have no labels"),
        (
            files("train/a", "train/b", "test/a", "test"),
            "images of test not in a folder of a class",
        ),
        (
            files("train/a", "train/b", "train"),
            "images of train not in a folder of a class, for example",
        ),
        (files("test/a", "test/b"), "no split for training among test"),
        (files("train/a", "train/b", "val/a", "dev/a"), "the names dev and val all mean"),
        (
            files("train/a", "train/b", "test/A"),
            "that the training split does not have: 'A'; did you mean",
        ),
        (files("train/a", "train/b", "test/c"), "the split test has classes that .*: 'c'"),
        (files("a", "b/c"), "expected the images directly in the class folder b, found b/c/0.png"),
        (files("a", "b", ""), "outside of the class folders, such as 0.png"),
        (files("a"), "found only one folder, a; expected a folder for each of at least two"),
        (files("photos/a", "photos/b"), "only one folder, photos.*did you mean --dataset .*photos"),
        (files("train/a", "test/a"), "at least two classes, found 3 images, all of class 'a'"),
        (files("x/train/a", "x/test/a", "y/train/b"), "a folder for each of 2 clients .x, y."),
        (files(""), "3 images and no folders; expected one folder of images for each class"),
        (["a/1.txt", "b/2.mat"], "found no image but 1 .txt, 1 .mat"),
        (["a/1.csv"], "found no image but 1 .csv; a table of images is read with"),
        ([], "found no image and no other file"),
    ],
    ids=str,
)
def test_what_is_unclear_is_refused_with_what_was_found(
    tmp_path: Path, names: list[str], reason: str
):
    put(tmp_path, [name.lstrip("/") for name in names])
    tmp_path.mkdir(exist_ok=True)
    with pytest.raises(UserError, match=reason):
        read(tmp_path)


def test_settings_resolve_what_is_unclear(tmp_path: Path):
    mixed = files("test", "bus")
    colours = put(tmp_path / "a", mixed)
    source = read(tmp_path / "a", layout="classes", test_fraction=0.4)
    both = found(source.train, colours) | found(source.test, colours)
    assert both == {name: name.split("/")[0] for name in mixed}

    put(tmp_path / "b", files("train/a", "train/b", "test/a", "extra/a"))
    source = read(tmp_path / "b", layout="splits")
    assert (len(source.train), len(source.test)) == (6, 3)
    assert "split extra (3 images)" in source.told

    put(tmp_path / "c", files("train/a", "train/b", "test"))
    source = read(tmp_path / "c", test_split="none", test_fraction=0.4)
    assert (len(source.train), len(source.test)) == (3, 3)
    assert "split test (3 images)" in source.told

    put(tmp_path / "d", files("old/a", "old/b", "new/b", "train/a"))
    source = read(tmp_path / "d", layout="splits", train_split="OLD", test_split="new")
    assert (len(source.train), len(source.test)) == (6, 3)

    put(tmp_path / "e", files("a/x/y", "a", "b/z"))
    source = read(tmp_path / "e", layout="classes", test_fraction=0.3)
    assert sorted([*source.train.labels, *source.test.labels]) == [0] * 6 + [1] * 3


def test_a_split_for_testing_is_never_the_one_for_training(tmp_path: Path):
    put(tmp_path, files("train/a", "train/b", "test/a"))
    assert "must not be used for training" in refusal(
        tmp_path, train_split="test", test_split="test"
    )
    assert "did you mean 'train'" in refusal(tmp_path, train_split="train[:10%]")
    put(tmp_path / "flat", files("a", "b"))
    assert "has no splits" in refusal(tmp_path / "flat", layout="classes", test_split="b")


def test_links_to_folders_are_followed_and_circles_are_cut(tmp_path: Path):
    names = files("elsewhere/a", "elsewhere/b", images=5)
    put(tmp_path, names)
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("a", "b"):
        (linked / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "a" / "circle").symlink_to(linked)
    (tmp_path / "elsewhere" / "b" / "self").symlink_to(tmp_path / "elsewhere" / "b")
    source = read(linked, layout="classes")
    assert (len(source.train), len(source.test)) == (8, 2)


@pytest.mark.parametrize("kind", ["link", "hard link", "folder"])
def test_a_file_in_two_splits_or_classes_is_refused(tmp_path: Path, kind: str):
    put(tmp_path, files("train/a", "train/b", "test/a", "test/b"))
    if kind == "folder":
        (tmp_path / "test" / "b" / "0.png").rename(tmp_path / "0.png")
        for name in ("1.png", "2.png"):
            (tmp_path / "test" / "b" / name).unlink()
        (tmp_path / "0.png").rename(tmp_path / "train" / "b" / "9.png")
        (tmp_path / "test" / "b").rmdir()
        (tmp_path / "test" / "b").symlink_to(tmp_path / "train" / "b")
    else:
        link = os.link if kind == "hard link" else os.symlink
        link(tmp_path / "train" / "b" / "1.png", tmp_path / "test" / "b" / "9.png")
    assert "are the same file; an image must belong to only one split, class and client" in refusal(
        tmp_path
    )


def test_a_file_twice_in_its_class_is_used_once(tmp_path: Path):
    """Otherwise one of the two could be held out for testing, and the other one trained on."""
    colours = put(tmp_path, files("a", "b"))
    (tmp_path / "a" / "copy.png").symlink_to(tmp_path / "a" / "0.png")
    source = read(tmp_path, test_fraction=0.4)
    assert len(found(source.train, colours) | found(source.test, colours)) == 6
    assert "1 link to images that are counted already" in source.told


def test_a_link_to_nothing_is_named(tmp_path: Path):
    put(tmp_path, files("a", "b"))
    (tmp_path / "a" / "9.png").symlink_to(tmp_path / "nowhere")
    assert "a/9.png is a broken link" in refusal(tmp_path)


def test_what_is_no_file_is_not_opened(tmp_path: Path):
    put(tmp_path, files("a", "b", images=5))
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert "1 .png" in read(tmp_path).told


def test_leavings_of_operating_systems_are_passed_over(tmp_path: Path):
    left = ["__MACOSX/train/a/._0.png", ".git/x.png", "@eaDir/0.png", "a/.ipynb_checkpoints/0.png"]
    put(tmp_path, [*files("a", "b", images=5), *left])
    source = read(tmp_path)
    assert len(source.train) + len(source.test) == 10
    assert "not used" not in source.told


def test_names_that_look_the_same_are_the_same_class(tmp_path: Path):
    put(tmp_path, files("train/caf\u00e9", "train/b", "test/cafe\u0301"))
    assert read(tmp_path).test.labels.tolist() == [1, 1, 1]


def test_the_flat_validation_images_of_tiny_imagenet_are_read_by_their_annotations(tmp_path: Path):
    names = [*files("train/n01/images", "train/n02/images"), *files("val/images", "test/images")]
    colours = put(tmp_path, [*names, "train/n01/n01_boxes.txt"])
    lines = "0.png\tn02\t0\t0\t1\t1\n1.png\tn01\t0\t0\t1\t1\n"
    (tmp_path / "val" / "val_annotations.txt").write_text(f"{lines}2.png\tn02\t0\t0\t1\t1\n")
    source = read(tmp_path)
    assert found(source.train, colours) == {n: n.split("/")[1] for n in names if "train" in n}
    assert list(found(source.test, colours).values()) == ["n02", "n01", "n02"]
    assert "(the split val)" in source.told
    assert "split test (3 images)" in source.told

    (tmp_path / "val" / "val_annotations.txt").write_text(lines)
    assert "val/images/2.png is missing in the annotations of val" in refusal(tmp_path)
    (tmp_path / "val" / "val_annotations.txt").write_text(f"{lines}3.png\tn01\n")
    assert "val_annotations.txt, line 3: expected the name of an image" in refusal(tmp_path)


def test_a_folder_for_each_client_is_never_pooled_silently(tmp_path: Path):
    names = [
        *files("north/train/cat", "north/train/dog", "north/test/dog"),
        *files("south/train/dog", "south/test/cat", images=4),
    ]
    colours = put(tmp_path, names)
    assert "data.partition=natural --clients 2" in refusal(tmp_path)
    source = read(tmp_path, partition="natural")
    assert found(source.train, colours) == {n: n.split("/")[2] for n in names if "train" in n}
    owners = dict(zip(found(source.train, colours), source.train.owners, strict=True))  # type: ignore[arg-type]
    assert {name.split("/")[0] for name, owner in owners.items() if owner == 1} == {"south"}
    assert source.test.owners is not None
    assert source.test.owners.tolist() == [0] * 3 + [1] * 4
    assert len(read(tmp_path, layout="clients").train) == 10
    put(tmp_path / "flat", files("north/cat", "south/dog", images=5))
    source = read(tmp_path / "flat", partition="natural")
    assert source.train.owners is not None
    assert (len(source.train), len(source.test)) == (8, 2)
    assert np.array_equal(source.train.owners, source.train.labels)
    assert "does not have a folder for each client" in refusal(Path("digits"), partition="natural")


def test_a_file_that_is_no_image_is_one_clear_error(tmp_path: Path):
    folder = tmp_path / "images"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8)).save(folder / name / f"{number}.png")
    broken = folder / "dog" / "3.png"
    whole = broken.read_bytes()
    bomb = io.BytesIO()  # 50 kB that would be 1.2 GB
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    wrong_chunk = whole[:33] + b"\0\0\0\1zTXt" + whole[41:]
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"  # would start Ghostscript
    for content in (b"no image", whole[:45], wrong_chunk, bomb.getvalue(), b"", postscript):
        broken.write_bytes(content)
        train, test = load(DataConfig(name=str(folder)))
        with pytest.raises(UserError, match=rf"image {broken} cannot be read: ") as caught:
            for images in (train, test):
                images.read(np.arange(len(images)), 8, 8)
        assert "\n" not in str(caught.value)
