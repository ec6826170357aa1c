"""Images that a program hands in: forms, labels matched by name, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from fl_vitlora.config import DataConfig
from fl_vitlora.data.given import Given, expect_given, read_given, with_given
from fl_vitlora.data.sources import load_source
from fl_vitlora.errors import UserError

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)  # (n, H, W, C)
LABELS = np.arange(12) % 3
PLAIN = DataConfig()


class Pairs(Dataset[Any]):
    """A map-style data set, with class names if they are given."""

    def __init__(self, images: Any, labels: Any, classes: list[str] | None = None) -> None:
        self.images, self.labels = images, labels
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return self.images[number], self.labels[number]


def read(train: Any, test: Any = None, names: Any = None, config: DataConfig = PLAIN) -> Given:
    return read_given(train, test, names, config)


def pixels(given: Given, height: int = 8, width: int = 10) -> np.ndarray[Any, Any]:
    everything = np.arange(len(given.train))
    return given.train.read(everything, height, width).permute(0, 2, 3, 1).numpy()


FORMS: dict[str, Any] = {
    "arrays, channels last": (PIXELS, LABELS),
    "arrays, channels first": (PIXELS.transpose(0, 3, 1, 2), LABELS.tolist()),
    "tensors": (torch.from_numpy(PIXELS), torch.from_numpy(LABELS)),
    "tensors, channels first": (torch.from_numpy(PIXELS).permute(0, 3, 1, 2), LABELS),
    "images of Pillow": Pairs([Image.fromarray(image) for image in PIXELS], LABELS),
    "a list of pairs": [(image, int(label)) for image, label in zip(PIXELS, LABELS, strict=True)],
    "tensors in a data set": Pairs(torch.from_numpy(PIXELS), [torch.tensor(n) for n in LABELS]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form: str) -> None:
    given = read(FORMS[form])
    assert np.array_equal(pixels(given), PIXELS)
    assert given.train.labels.tolist() == LABELS.tolist()
    assert given.train.class_names == ("0", "1", "2")
    assert given.digest == read(FORMS["arrays, channels last"]).digest


def test_grey_images_have_three_equal_channels() -> None:
    grey = PIXELS[..., 0]
    for images in (grey, grey[..., None], grey[:, None]):
        assert np.array_equal(pixels(read((images, LABELS))), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int64, torch.bfloat16])
def test_other_numbers_than_bytes_need_a_range(kind: Any) -> None:
    images: Any = PIXELS.astype(np.float32)
    if isinstance(kind, torch.dtype):
        images = torch.from_numpy(images).to(kind)
    else:
        images = images.astype(kind)
    with pytest.raises(UserError, match=r"train item 0: .*data\.pixel_range=\[LOW, HIGH\]"):
        read((images, LABELS))
    given = read((images, LABELS), config=DataConfig(pixel_range=(0.0, 256.0)))
    steps = np.asarray(images.float() if isinstance(images, torch.Tensor) else images)
    assert np.array_equal(pixels(given), np.rint(steps.astype(np.float64) / 256 * 255))


def test_numbers_outside_of_the_range_are_refused() -> None:
    """Pixels that were normalised by a mean, for example: half of them would become black."""
    images = PIXELS.astype(np.float32) / 255 * 2 - 1
    with pytest.raises(UserError, match=r"train item 0: the pixels go from .* outside of"):
        read((images, LABELS), config=DataConfig(pixel_range=(0.0, 1.0)))
    images[5, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="train item 5: the pixels go from nan"):
        read((images, LABELS), config=DataConfig(pixel_range=(-1.0, 1.0)))


def test_labels_are_matched_by_name_and_not_by_number() -> None:
    train = Pairs(PIXELS, LABELS, ["ant", "bee", "cat"])
    test = Pairs(PIXELS[:4], [0, 1, 1, 0], ["cat", "bee"])
    given = read(Subset(train, range(12)), test)
    assert given.test is not None
    assert given.test.labels.tolist() == [2, 1, 1, 2]
    assert given.test.class_names == ("ant", "bee", "cat")
    texts = read((PIXELS, [["bee", "ant", "cat"][n] for n in LABELS]))
    assert texts.train.class_names == ("ant", "bee", "cat")
    named = read((PIXELS, LABELS), (PIXELS, ["ant", "bee"] * 6), ["bee", "ant", "cat", "dog"])
    assert named.train.class_names == ("bee", "ant", "cat", "dog")
    assert named.test is not None
    assert named.test.labels.tolist() == [1, 0] * 6


class Turning(Pairs):
    """A data set with a random transform."""

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        return RANDOM.integers(0, 256, (8, 10, 3), dtype=np.uint8), self.labels[number]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(PIXELS, LABELS, strict=True)


SMALL = np.zeros((12, 3, 8, 3), dtype=np.uint8)
REFUSED: dict[str, tuple[Any, str]] = {
    "both may be channels": ((SMALL, LABELS), r"train item 0: .*\(3, 8, 3\), which may be both"),
    "four channels": (
        (np.zeros((12, 8, 9, 4), dtype=np.uint8), LABELS),
        r"train item 0: expected \(H, W\), .*1 or 3 channels C, got the shape \(8, 9, 4\)",
    ),
    "flat images": ((np.zeros((12, 3, 64), dtype=np.uint8), LABELS), r"got the shape \(3, 64\)"),
    "vectors": ((np.zeros((12, 64), dtype=np.uint8), LABELS), r"got the shape \(12, 64\) and 12"),
    "fewer labels": ((PIXELS, LABELS[:5]), "and 5 labels"),
    "a stream": (Stream(), "expected a data set of torch with a length"),
    "dictionaries": ([{"image": PIXELS[0]}], r"train item 0: expected \(image, label\)"),
    "no image": ([("a.png", 0)], "train item 0: expected an image of Pillow, or an array"),
    "a share as label": ((PIXELS, LABELS / 2), "train item 0: expected a whole number or a text"),
    "truth as label": ((PIXELS, LABELS > 1), "train item 0: expected a whole number or a text"),
    "many labels": ((PIXELS, np.eye(12)), "train item 0: expected a whole number or a text"),
    "one class": ((PIXELS, [7] * 12), "at least two classes, found 12 images, all of class '7'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(what: str) -> None:
    images, expected = REFUSED[what]
    with pytest.raises(UserError, match=expected) as error:
        read(images)
    assert "\n" not in str(error.value)


def test_classes_that_do_not_fit_are_refused() -> None:
    named, unnamed = Pairs(PIXELS, LABELS, ["ant", "bee", "cat"]), Pairs(PIXELS, LABELS)
    with pytest.raises(UserError, match="test: the data set has no class names"):
        read(named, unnamed)
    with pytest.raises(UserError, match="train: the data set has no class names"):
        read(unnamed, named)
    with pytest.raises(UserError, match="train item 2: the label 2 is none of the 2 classes"):
        read(unnamed, names=["ant", "bee"])
    with pytest.raises(UserError, match="two classes have the same name, 'ant'"):
        read(unnamed, names=["ant", "bee", "ant"])
    with pytest.raises(UserError, match="class_names: expected a list of texts, got 'abc'"):
        read(unnamed, names="abc")
    with pytest.raises(UserError, match="the split test has classes that the training split does"):
        read(unnamed, (PIXELS, LABELS + 1))


def test_a_data_set_that_changes_is_refused_when_it_is_encrypted() -> None:
    given = read(Turning(PIXELS, LABELS))
    with pytest.raises(UserError, match="train item 0 is not the image that it was"):
        pixels(given)


def test_settings_of_another_data_set_are_refused() -> None:
    for config, expected in (
        (DataConfig(name="cifar10"), "data.name is cifar10, but images were also passed"),
        (DataConfig(client_column="site"), "data.client_column has no meaning"),
        (DataConfig(partition="natural"), "data.partition natural"),
    ):
        with pytest.raises(UserError, match=expected):
            read((PIXELS, LABELS), config=config)


def test_only_the_same_images_continue_a_run() -> None:
    given, other = read((PIXELS, LABELS)), read((PIXELS[::-1].copy(), LABELS))
    config = with_given(PLAIN, given)
    source = load_source(config, given)
    assert source.told.startswith("data: 9 images for training, 3 for testing (handed in by a pro")
    assert given.digest in source.told and source.identity == f"given {given.digest}"
    with pytest.raises(UserError, match=r"a Python program passes the images; .*fv\.resume"):
        load_source(config)
    with pytest.raises(UserError, match="expected the images with which the run began"):
        expect_given(config, other)
    relabelled = read((PIXELS, LABELS[::-1].copy()))
    assert len({given.digest, other.digest, relabelled.digest}) == 3
    assert read((PIXELS, LABELS), (PIXELS, LABELS)).digest != given.digest
