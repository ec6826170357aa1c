"""Whatever moves units and flips bits is found by a few probes, and can be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_vitlora.encryption.pixel_map import DIGITS, PROBES, PixelMap, probe
from fl_vitlora.rng import generator

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "images"))


def random_map(units: int, highest: int, seed: int) -> PixelMap:
    chance = np.random.default_rng(seed)
    mask = chance.integers(0, highest + 1, units, dtype=np.uint8)
    return PixelMap(order=chance.permutation(units), mask=mask)


@given(shape=SHAPES, halves=st.booleans(), seed=st.integers(0, 99), batch=st.integers(0, 3))
def test_a_map_is_undone_bit_by_bit(
    shape: tuple[int, int, int], halves: bool, seed: int, batch: int
):
    pixels = int(np.prod(shape))
    map_ = random_map(2 * pixels if halves else pixels, 15 if halves else 255, seed)
    images = random_images(batch, *shape)
    assert torch.equal(map_.invert(map_.apply(images)), images)
    assert torch.equal(map_.apply(map_.invert(images)), images)


@given(shape=SHAPES, halves=st.booleans(), seed=st.integers(0, 99))
def test_probing_a_map_finds_the_map(shape: tuple[int, int, int], halves: bool, seed: int):
    pixels = int(np.prod(shape))
    hidden = random_map(2 * pixels if halves else pixels, 15 if halves else 255, seed)
    found = probe(hidden.apply, shape)
    images = random_images(3, *shape)
    assert torch.equal(found.apply(images), hidden.apply(images))
    if not halves:
        assert np.array_equal(found.order, hidden.order)
        assert np.array_equal(found.mask, hidden.mask)


def test_halves_are_only_told_apart_where_they_part():
    swap = PixelMap(order=np.array([1, 0, 2, 3, 4, 5]), mask=np.zeros(6, dtype=np.uint8))
    stay = PixelMap(order=np.arange(6), mask=np.array([1, 2, 0, 0, 0, 0], dtype=np.uint8))
    assert len(probe(swap.apply, (3, 1, 1)).order) == 6
    assert len(probe(stay.apply, (3, 1, 1)).order) == 3
    image = torch.tensor([0x12, 0x34, 0x56], dtype=torch.uint8).view(1, 3, 1, 1)
    assert swap.apply(image).flatten().tolist() == [0x21, 0x34, 0x56]
    assert stay.apply(image).flatten().tolist() == [0x12 ^ 0x12, 0x34, 0x56]


def test_a_map_costs_as_many_probes_as_it_says():
    asked: list[int] = []

    def count(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images

    probe(count, (3, 4, 4))
    assert asked == [PROBES]
    assert 16**DIGITS > 2 * 3 * 1024 * 1024  # enough for nibbles of a megapixel


@pytest.mark.parametrize("halves", [False, True])
def test_a_map_leaves_its_images_alone(halves: bool):
    images = random_images(2, 3, 2, 2)
    before = images.clone()
    map_ = random_map(24 if halves else 12, 15, 0)
    map_.apply(images).zero_()
    map_.invert(images).zero_()
    assert torch.equal(images, before)
