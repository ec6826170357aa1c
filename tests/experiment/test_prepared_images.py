"""The clients' images where folders say whose they are, and what a person is told of the images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fl_vitlora.config import Config, load, resolve, to_mapping
from fl_vitlora.data.images import Images, Indices
from fl_vitlora.data.partition import partition
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_images
from fl_vitlora.reporting.console import ComparisonDisplay, RunDisplay


def client_folders(root: Path, images: dict[str, int]) -> Config:
    """Lays out folders of clients, with so many images of each class in each split."""
    for client, count in images.items():
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                place = root / client / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    Image.new("L", (4, 4)).save(place / f"{number}.png")
    return load(None, {"data.name": str(root), "clients": len(images)})


def test_the_natural_partition_leaves_each_client_its_folder(tmp_path: Path) -> None:
    config = client_folders(tmp_path, {"a": 2, "b": 3})
    natural = resolve(to_mapping(config), {"data.partition": "natural", "evaluation.by": "clients"})
    images = prepare_images(natural)
    assert [len(part) for part in images.parts] == [6, 4]  # the largest first
    assert [len(part) for part in images.test_parts] == [6, 4]
    assert images.train.owners is not None
    assert images.test.owners is not None
    for client, owner in enumerate((1, 0)):
        assert set(images.train.owners[images.parts[client]]) == {owner}
        assert set(images.test.owners[images.test_parts[client]]) == {owner}
    assert "pooled" not in images.summary


def test_pooled_folders_of_clients_are_told(tmp_path: Path) -> None:
    config = client_folders(tmp_path, {"a": 3, "b": 4})
    pooled = resolve(to_mapping(config), {"data.layout": "clients", "data.partition": "iid"})
    assert (
        "are mixed and divided again (data.partition=iid; with data.partition=natural"
        in prepare_images(pooled).summary
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"clients": 3}, "has training images of 2 clients \\(a, b\\); set --clients 2"),
        (
            {"data.min_samples": 5},
            "the client 'a' has only 4 training images, fewer than data.min_samples",
        ),
        ({"data.name": "digits"}, "digits does not have a folder for each client"),
    ],
)
def test_a_natural_partition_that_cannot_be_is_refused(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    config = client_folders(tmp_path, {"a": 2, "b": 3})
    with pytest.raises(UserError, match=told):
        prepare_images(resolve(to_mapping(config), {"data.partition": "natural", **changed}))


@pytest.mark.parametrize("kind", [RunDisplay, ComparisonDisplay])
def test_what_is_told_of_the_images_is_one_line_on_the_console(
    kind: type[RunDisplay] | type[ComparisonDisplay],
) -> None:
    """The runs of a comparison say it once; whatever names of classes hold is shown as it is."""
    screen, line = io.StringIO(), f"data: {'many images ' * 20} of [bold]cats[/bold]"
    with kind(2, Console(file=screen, width=40)) as display:
        for _ in range(2):
            display.note(line)
    expected = 2 if kind is RunDisplay else 1
    assert screen.getvalue().splitlines().count(line) == expected


HELD = {"data.validation_fraction": 0.1}


@pytest.mark.parametrize("kind", ["dirichlet", "iid"])
@pytest.mark.parametrize("by", ["central", "clients"])
def test_nobody_trains_on_validation_images(kind: str, by: str) -> None:
    given = {"clients": 5, "data.limit": 300, "data.partition": kind, "evaluation.by": by}
    images = prepare_images(load(None, {**given, **HELD}))
    trained, held = np.concatenate(images.parts), np.concatenate(images.validation)
    assert sorted([*trained, *held]) == list(range(300))
    assert len(images.validation) == (5 if by == "clients" else 1)
    told = f"; {len(held)} of the training images are held out for validation"
    assert images.summary.endswith(told)
    shares = np.bincount(images.train.labels[held], minlength=10) / len(held)
    assert abs(shares - np.bincount(images.train.labels) / 300).max() < 0.06
    assert abs(len(held) - 30) <= 5 / 2  # rounded once, or for each client


@pytest.mark.parametrize("by", ["central", "clients"])
def test_without_validation_images_all_is_as_before(by: str) -> None:
    given = {"clients": 5, "data.limit": 300, "evaluation.by": by}
    images = prepare_images(load(None, given))
    assert images.validation == []
    assert "validation" not in images.summary
    expected = partition(images.train.labels, 5, load(None, given).data, 0)
    for own, other in zip(images.parts, expected, strict=True):
        assert np.array_equal(own, other)


@pytest.mark.parametrize("by", ["central", "clients"])
def test_folders_of_clients_hold_out_images_as_well(tmp_path: Path, by: str) -> None:
    config = client_folders(tmp_path, {"a": 10, "b": 20})
    given = {"data.partition": "natural", "evaluation.by": by, **HELD}
    images = prepare_images(resolve(to_mapping(config), given))
    owners = images.train.owners
    assert owners is not None
    assert [len(set(owners[part])) for part in images.parts] == [1, 1]
    assert sum(map(len, images.parts)) + sum(map(len, images.validation)) == 60
    if by == "clients":
        assert [len(part) for part in images.validation] == [4, 2]
        for part, held in zip(images.parts, images.validation, strict=True):
            assert set(owners[part]) == set(owners[held])


def split_folders(root: Path, sizes: dict[str, int], clients: tuple[str, ...] = ("",)) -> Config:
    """Lays out splits with so many images of each class, each image with a grey of its own."""
    grey = 0
    for client in clients:
        for split, count in sizes.items():
            for name in ("cat", "dog"):
                place = root / client / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    Image.new("L", (4, 4), grey).save(place / f"{number}.png")
                    grey += 1
    return load(None, {"data.name": str(root), "clients": 2, "data.min_samples": 1})


def greys(images: Images, positions: Indices) -> set[int]:
    return set(images.read(positions, 4, 4)[:, 0, 0, 0].tolist())


VALIDATED = {"data.validation_split": "val", "data.partition": "iid"}
SIZES = {"train": 5, "val": 3, "test": 4}


@pytest.mark.parametrize("by", ["central", "clients"])
def test_a_split_of_the_data_set_may_be_the_validation_images(tmp_path: Path, by: str) -> None:
    config = split_folders(tmp_path, SIZES)
    given = {**VALIDATED, "evaluation.by": by}
    images = prepare_images(resolve(to_mapping(config), given))
    # sizes by class: 5 + 5 for training, then 3 + 3 for validation
    assert set().union(*(greys(images.train, part) for part in images.parts)) == set(range(10))
    held = [greys(images.train, part) for part in images.validation]
    assert sorted(set().union(*held)) == list(range(10, 16))
    assert [len(part) for part in held] == ([3, 3] if by == "clients" else [6])
    assert images.train.labels[np.concatenate(images.parts)].sum() == 5
    assert images.train.labels[np.concatenate(images.validation)].sum() == 3
    assert len(images.test) == 8
    assert "8 for testing (the split test), 6 for validation (the split val)" in images.summary
    assert "not used" not in images.summary
    assert "held out" not in images.summary


def test_the_validation_split_is_no_test_split(tmp_path: Path) -> None:
    """Without a test split, a share of the training images is held out for testing."""
    config = split_folders(tmp_path, {"train": 5, "val": 3})
    images = prepare_images(resolve(to_mapping(config), VALIDATED))
    assert greys(images.train, np.concatenate(images.validation)) == set(range(10, 16))
    assert len(images.test) == 2
    assert "20 % held out of the training images), 6 for validation" in images.summary


def test_clients_with_folders_validate_on_their_own_images(tmp_path: Path) -> None:
    """The program knows the splits of clients by their meaning, so "val" is "validation"."""
    config = split_folders(tmp_path, SIZES, clients=("x", "y"))
    given = {"data.partition": "natural", "evaluation.by": "clients"}
    split = {"data.validation_split": "validation"}
    images = prepare_images(resolve(to_mapping(config), {**given, **split}))
    owners = images.train.owners
    assert owners is not None
    for part, held in zip(images.parts, images.validation, strict=True):
        assert len(set(owners[part]) | set(owners[held])) == 1
        assert (len(part), len(held)) == (10, 6)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"data.validation_split": "vall"}, "did you mean 'val'"),
        (
            {"data.validation_split": "train"},
            "data.train_split and data.validation_split are both 'train'",
        ),
        (
            {"data.validation_split": "test", "data.test_split": "test"},
            "data.test_split and data.validation_split are both 'test'",
        ),
        ({"data.name": "digits"}, "the digits have no splits"),
        ({"clients": 7, "evaluation.by": "clients"}, "each client, got 6 validation images"),
    ],
)
def test_a_validation_split_that_cannot_be_is_refused(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    config = split_folders(tmp_path, SIZES)
    with pytest.raises(UserError, match=told):
        prepare_images(resolve(to_mapping(config), {**VALIDATED, **changed}))
