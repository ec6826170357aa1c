"""Every source ends in the same value: labels from 0, RGB pixels on demand, a test split apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fl_vitlora.config import DataConfig
from fl_vitlora.data.sources import ROWS_AT_ONCE, Images, load
from fl_vitlora.errors import UserError

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def picture(colour: tuple[int, int, int], size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def rows(label: Any, values: list[Any], **columns: Any) -> datasets.Dataset:
    """One picture for each value, of the colours in turn; `label` is the type of the labels."""
    kinds = {"picture": datasets.Image(), "label": label}
    kinds |= {name: datasets.Value("int64") for name in columns}
    colours = list(COLOURS.values())
    content = {"picture": [picture(colours[i % 3]) for i in range(len(values))], "label": values}
    return datasets.Dataset.from_dict({**content, **columns}, features=datasets.Features(kinds))


def save(folder: Path, data: datasets.Dataset | datasets.DatasetDict) -> DataConfig:
    data.save_to_disk(str(folder / "saved"))
    return DataConfig(name=str(folder / "saved"))


def colour_of(images: Images, position: int, size: int = 8) -> list[int]:
    pixels = images.read(np.array([position]), size, size)
    assert pixels.shape == (1, 3, size, size)
    assert pixels.dtype == torch.uint8
    return pixels[0, :, size // 2, size // 2].tolist()


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    return load(DataConfig())


def test_digits_are_1797_images_a_fifth_of_them_for_testing(digits: tuple[Images, Images]):
    train, test = digits
    assert (len(train), len(test)) == (1437, 360)
    assert train.class_names == test.class_names == tuple("0123456789")


def test_the_held_out_digits_are_stratified_and_always_the_same(digits: tuple[Images, Images]):
    train, test = digits
    shares = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert shares == pytest.approx(np.full(10, 0.2), abs=0.01)
    again, _ = load(DataConfig())
    assert np.array_equal(train.labels, again.labels)
    assert torch.equal(train.read(np.arange(9), 8, 8), again.read(np.arange(9), 8, 8))


def test_no_digit_is_in_both_parts(digits: tuple[Images, Images]):
    pixels = [part.read(np.arange(len(part)), 8, 8).flatten(1).tolist() for part in digits]
    train, test = ({tuple(row) for row in part} for part in pixels)
    assert len(train) + len(test) == 1797
    assert not train & test


def test_digits_have_17_grey_levels_at_their_own_size(digits: tuple[Images, Images]):
    pixels = digits[0].read(np.arange(200), 8, 8)
    assert set(pixels.flatten().tolist()) == {round(level * 255 / 16) for level in range(17)}
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert torch.equal(pixels[:, 0], pixels[:, 2])


@pytest.mark.parametrize("size", [8, 16, 20])
def test_pixels_come_in_the_order_and_size_asked(digits: tuple[Images, Images], size: int):
    images = digits[1]
    some = images.read(np.array([5, 2]), size, size)
    assert some.shape == (2, 3, size, size)
    assert some.dtype == torch.uint8
    assert torch.equal(some.flip(0), images.read(np.array([2, 5]), size, size))


def test_images_need_not_be_square(digits: tuple[Images, Images]):
    """Each side is scaled by itself: halving the rows of a higher image gives the square one."""
    some = np.array([5, 2])
    high = digits[1].read(some, 24, 8)
    assert high.shape == (2, 3, 24, 8)
    assert torch.equal(high[:, :, 1::3], digits[1].read(some, 8, 8))


def test_selecting_twice_composes(digits: tuple[Images, Images]):
    images = digits[1]
    inner = images.select(np.array([9, 4, 7])).select(np.array([2, 0]))
    assert inner.labels.tolist() == images.labels[[7, 9]].tolist()
    assert torch.equal(inner.read(np.array([0, 1]), 8, 8), images.read(np.array([7, 9]), 8, 8))


def test_a_limit_keeps_a_fixed_selection_of_all_classes():
    train, test = load(DataConfig(limit=100))
    assert (len(train), len(test)) == (100, 100)
    assert set(train.labels) == set(range(10))
    assert np.array_equal(train.labels, load(DataConfig(limit=100))[0].labels)
    assert len(load(DataConfig(limit=10**6))[0]) == 1437


@pytest.mark.parametrize(
    ("label", "values", "names"),
    [
        (datasets.ClassLabel(names=["cat", "dog"]), [1, 0] * 6, ("cat", "dog")),
        (datasets.ClassLabel(names=["cat", "dog", "eel"]), [1, 0] * 6, ("cat", "dog", "eel")),
        (datasets.Value("int64"), [12, 7] * 6, ("7", "12")),
        (datasets.Value("string"), ["dog", "cat"] * 6, ("cat", "dog")),
    ],
    ids=["classes", "a class without images", "numbers", "names"],
)
def test_labels_of_any_type_become_numbers_from_0(
    tmp_path: Path, label: Any, values: list[Any], names: tuple[str, ...]
):
    train, test = load(save(tmp_path, rows(label, values)))
    assert train.class_names == names
    assert (len(train), len(test)) == (9, 3)
    assert sorted([*train.labels, *test.labels]) == [0] * 6 + [1] * 6


def test_a_test_split_is_used_and_its_pictures_are_read(tmp_path: Path):
    kind = datasets.ClassLabel(names=["red", "green", "blue"])
    both = datasets.DatasetDict({"train": rows(kind, [0, 1, 2, 0]), "test": rows(kind, [0, 1, 2])})
    train, test = load(save(tmp_path, both))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 2, 0], [0, 1, 2])
    for position, colour in enumerate(COLOURS.values()):
        assert colour_of(test, position) == list(colour)
        assert colour_of(test, position, size=32) == list(colour)


def test_a_label_that_training_images_lack_is_refused(tmp_path: Path):
    kind = datasets.Value("string")
    both = datasets.DatasetDict({"train": rows(kind, ["a", "b"]), "test": rows(kind, ["a", "c"])})
    with pytest.raises(
        UserError, match=r"the split test has classes that the .*: 'c' \(training: a, b"
    ):
        load(save(tmp_path, both))


def test_images_without_a_label_are_refused(tmp_path: Path):
    kind = datasets.ClassLabel(names=["a", "b"])
    with pytest.raises(UserError, match=r"column 'label', row 1 .*: no label \(-1\)"):
        load(save(tmp_path, rows(kind, [0, -1, 1])))


def test_of_several_labels_the_finest_is_taken(tmp_path: Path):
    data = rows(datasets.ClassLabel(names=["x", "y"]), [0, 1] * 10, fine=[0, 1, 2, 3] * 5)
    data = data.cast_column("fine", datasets.ClassLabel(names=["p", "q", "r", "s"]))
    config = save(tmp_path, data)
    assert load(config)[0].class_names == ("p", "q", "r", "s")
    coarse = DataConfig(name=config.name, label_column="label")
    assert load(coarse)[0].class_names == ("x", "y")


@pytest.mark.parametrize("column", ["image_column", "label_column"])
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, column: str):
    config = save(tmp_path, rows(datasets.Value("int64"), [0, 1]))
    with pytest.raises(UserError, match=r"no column 'x', only \['picture', 'label'\]"):
        load(DataConfig(name=config.name, **{column: "x"}))  # type: ignore[arg-type]


def test_columns_that_cannot_be_guessed_are_asked_for(tmp_path: Path):
    data = rows(datasets.Value("int64"), [0, 1] * 4)
    nameless = save(tmp_path / "a", data.rename_column("label", "kind"))
    with pytest.raises(UserError, match=r"no label column .* data\.label_column=NAME"):
        load(nameless)
    assert len(load(DataConfig(name=nameless.name, label_column="kind"))[0]) == 6
    blind = save(tmp_path / "b", data.remove_columns("picture"))
    with pytest.raises(UserError, match=r"one image column, found \[\] .* data\.image_column=NAME"):
        load(blind)


def test_a_column_of_other_things_than_images_is_refused(tmp_path: Path):
    data = rows(datasets.Value("int64"), [0, 1] * 4, size=[8] * 8)
    config = DataConfig(name=save(tmp_path, data).name, image_column="size")
    with pytest.raises(
        UserError, match=r"column 'size': expected images, got values of the type .*int64"
    ) as caught:
        load(config)
    assert "\n" not in str(caught.value)


def test_pictures_have_the_colours_that_their_column_allows(tmp_path: Path):
    """A data set may say that its images are grey, whatever its files are."""
    data = rows(datasets.ClassLabel(names=["a", "b"]), [0, 1] * 6)
    grey = data.cast_column("picture", datasets.Image(mode="L"))
    train, _ = load(save(tmp_path, grey))
    pixels = train.read(np.arange(len(train)), 8, 8)
    assert set(pixels[:, 0, 0, 0].tolist()) == {29, 76, 150}  # ITU-R 601 of blue, red, green
    assert (pixels == pixels[:, :1]).all()


def test_more_pictures_than_are_read_at_once_come_in_the_order_asked(tmp_path: Path):
    kind = datasets.ClassLabel(names=["a", "b"])
    both = datasets.DatasetDict({"train": rows(kind, [0, 1] * 100), "test": rows(kind, [0, 1])})
    train, _ = load(save(tmp_path, both))
    places = np.random.default_rng(0).permutation(200)
    assert len(places) > 2 * ROWS_AT_ONCE
    colours = train.read(places, 8, 8)[:, :, 0, 0].tolist()
    assert colours == [list(list(COLOURS.values())[place % 3]) for place in places]


def test_a_folder_of_pictures_is_a_data_set(tmp_path: Path):
    for name, colour in COLOURS.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            picture(colour, 10).save(tmp_path / "pictures" / name / f"{number}.png")
    train, test = load(DataConfig(name=str(tmp_path / "pictures"), test_fraction=0.25))
    assert train.class_names == ("blue", "green", "red")
    assert (len(train), sorted(test.labels)) == (9, [0, 1, 2])
    for position, label in enumerate(test.labels):
        assert colour_of(test, position) == list(COLOURS[test.class_names[label]])


def test_pictures_stand_upright(tmp_path: Path):
    """A picture whose upper left corner is white, wider than high."""
    image = picture((0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 4, 2))
    data = datasets.Dataset.from_dict(
        {"picture": [image] * 10, "label": [0, 1] * 5},
        features=datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int8")}),
    )
    pixels = load(save(tmp_path, data))[0].read(np.array([0]), 8, 8)[0]
    expected = torch.zeros(3, 8, 8, dtype=torch.uint8)
    expected[:, :2, :4] = 255
    assert torch.equal(pixels, expected)


def test_pictures_are_scaled_to_height_and_width(tmp_path: Path):
    """The upper half of a picture is white; it is so in a picture twice as wide as high."""
    image = picture((0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 4))
    data = datasets.Dataset.from_dict(
        {"picture": [image] * 10, "label": [0, 1] * 5},
        features=datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int8")}),
    )
    pixels = load(save(tmp_path, data))[0].read(np.array([0]), 16, 32)[0]
    assert pixels.shape == (3, 16, 32)
    assert (pixels[:, :6] == 255).all()
    assert (pixels[:, 10:] == 0).all()


def test_a_share_that_cannot_be_held_out_is_refused(tmp_path: Path):
    config = save(tmp_path, rows(datasets.Value("int64"), [0, 1, 2]))
    with pytest.raises(
        UserError, match=r"data\.test_fraction 0\.2: this share of the images cannot be used"
    ):
        load(config)


def test_a_path_that_is_no_data_set_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="expected a folder, got a file"):
        load(DataConfig(name=str(tmp_path / "file")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="expected a saved data set or folders of images"):
        load(DataConfig(name=str(tmp_path / "empty")))


def test_what_is_neither_here_nor_on_the_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"neither 'digits' nor a local path.* --dataset FOLDER"):
        load(DataConfig(name="nobody/nowhere"))


def test_a_path_is_not_asked_of_the_hub():
    with pytest.raises(UserError, match="'photos/of/cats': this folder does not exist"):
        load(DataConfig(name="photos/of/cats"))


@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json"])
def test_a_saved_data_set_that_is_broken_is_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_text('{"splits": ["train"]}')
    with pytest.raises(UserError, match=f"data set {tmp_path}: expected a saved data set"):
        load(DataConfig(name=str(tmp_path)))


def test_images_are_no_labels(tmp_path: Path):
    saved = save(tmp_path, rows(datasets.ClassLabel(names=["a", "b"]), [0, 1] * 3))
    with pytest.raises(
        UserError,
        match=r"data\.label_column picture: expected a column of labels, got the type Image",
    ):
        load(replace(saved, label_column="picture"))


def test_a_picture_too_large_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    train, _ = load(save(tmp_path, rows(datasets.ClassLabel(names=["a", "b"]), [0, 1] * 5)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match="cannot be read: DecompressionBombError"):
        train.read(np.array([0]), 8, 8)
