"""Copies of training images: the first is the image, and the others differ as was asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.config import DataConfig
from fl_vitlora.data.augmentation import (
    augmented,
    check_copies,
    positions_of_copies,
    with_copies,
)
from fl_vitlora.data.images import Images
from fl_vitlora.errors import UserError

COUNT, HEIGHT, WIDTH = 12, 32, 16
DRAW = torch.Generator().manual_seed(0)
PIXELS = torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=DRAW)
EVERYTHING = np.arange(COUNT)


def images() -> Images:
    return Images(
        labels=EVERYTHING % 3,
        class_names=("a", "b", "c"),
        read=lambda positions, height, width: PIXELS[torch.from_numpy(positions)],
        owners=EVERYTHING % 2,
        clients=("x", "y"),
    )


def copy_of(copy: int, augment: list[str], seed: int = 0) -> Tensor:
    several = with_copies(images(), copy + 1, augment, seed)
    return several.read(EVERYTHING + copy * COUNT, HEIGHT, WIDTH)


@pytest.mark.parametrize("augment", [["flip"], ["crop"], ["flip", "crop"]])
def test_the_first_copies_are_the_images_themselves(augment: list[str]) -> None:
    assert torch.equal(copy_of(0, augment), PIXELS)


def test_every_second_copy_is_mirrored() -> None:
    assert torch.equal(copy_of(1, ["flip"]), PIXELS.flip(-1))
    for copy in (1, 2, 3):
        mirrored = PIXELS.flip(-1) if copy % 2 else PIXELS
        both = with_copies(images(), copy + 1, ["flip", "crop"], 0)
        for row in range(COUNT):
            seen = both.read(np.array([row + copy * COUNT]), HEIGHT, WIDTH)[0]
            assert any(torch.equal(seen, window) for window in windows(mirrored[row]))


def windows(image: Tensor) -> list[Tensor]:
    """Returns all windows of the image that is mirrored beyond its edges, by a library."""
    padded = F.pad(image[None].float(), (2, 2, 4, 4), mode="reflect")[0].to(torch.uint8)
    return [
        padded[:, top : top + HEIGHT, left : left + WIDTH] for top in range(9) for left in range(5)
    ]


def test_crops_are_windows_of_the_mirrored_image_and_all_places_occur() -> None:
    found = set()
    for seed in range(400):
        seen = augmented(PIXELS[0], 1, ["crop"], seed)
        (place,) = [n for n, window in enumerate(windows(PIXELS[0])) if torch.equal(seen, window)]
        found.add(place)
    assert found == set(range(45))


@given(order=st.lists(st.integers(0, 3 * COUNT - 1), min_size=1), seed=st.integers(0, 2**31))
def test_a_copy_depends_on_its_position_and_the_seed_alone(order: list[int], seed: int) -> None:
    several = with_copies(images(), 3, ["flip", "crop"], seed)
    whole = several.read(np.arange(3 * COUNT), HEIGHT, WIDTH)
    assert torch.equal(several.read(np.array(order), HEIGHT, WIDTH), whole[torch.tensor(order)])


def test_another_seed_copy_or_image_is_cropped_elsewhere() -> None:
    one, other = copy_of(1, ["crop"], seed=0), copy_of(1, ["crop"], seed=1)
    assert not torch.equal(one, other)
    assert not torch.equal(one, copy_of(2, ["crop"], seed=0))


def test_copies_keep_labels_and_owners() -> None:
    several = with_copies(images(), 3, ["crop"], 0)
    assert len(several) == 3 * COUNT
    for copy in range(3):
        own = several.select(EVERYTHING + copy * COUNT)
        assert own.labels.tolist() == images().labels.tolist()
        assert own.owners is not None
        assert own.owners.tolist() == (EVERYTHING % 2).tolist()


def test_the_copies_of_a_part_follow_the_images_themselves() -> None:
    part = np.array([7, 2])
    assert positions_of_copies(part, COUNT, 1).tolist() == [7, 2]
    assert positions_of_copies(part, COUNT, 3).tolist() == [7, 2, 19, 14, 31, 26]


@pytest.mark.parametrize(
    ("given_settings", "told"),
    [
        ({"copies": 2}, "choose how the copies differ"),
        ({"augment": ("crop",)}, "the only copy is the image itself"),
        ({"copies": 3, "augment": ("flip",)}, "an image has only one mirror image"),
        ({"copies": 3, "augment": ("crop", "crop")}, "expected each kind of change at most once"),
    ],
)
def test_copies_that_would_be_equal_and_changes_without_copies_are_refused(
    given_settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        check_copies(DataConfig(**given_settings))


@pytest.mark.parametrize(
    "given_settings",
    [
        {},
        {"copies": 2, "augment": ("flip",)},
        {"copies": 9, "augment": ("crop",)},
        {"copies": 3, "augment": ("flip", "crop")},
    ],
)
def test_other_copies_are_accepted(given_settings: dict[str, Any]) -> None:
    check_copies(DataConfig(**given_settings))
