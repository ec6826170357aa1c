"""Each step does what its definition says, to blocks, and has a key that undoes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.steps import STEPS, entries, nibble_shuffling
from fl_vitlora.rng import generator

KEY = bytes(range(32))
NIBBLES = ("nibble_shuffling", "block_nibble_shuffling")
GEOMETRIES = st.builds(
    Geometry,
    blocks=st.integers(1, 6),
    channels=st.integers(1, 4),
    block_size=st.integers(1, 4),
    per_block=st.booleans(),
)


def random_blocks(geometry: Geometry, batch: int = 3, seed: int = 0) -> Tensor:
    shape = (batch, geometry.blocks, geometry.entries)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "blocks"))


@pytest.mark.parametrize("step", STEPS)
@given(geometry=GEOMETRIES)
def test_the_inverse_key_undoes_a_step_on_blocks(step: str, geometry: Geometry):
    key = STEPS[step].draw_key(KeyStream(KEY), geometry)
    blocks, inverse = random_blocks(geometry), STEPS[step].inverse(key)
    for first, second in ((key, inverse), (inverse, key)):
        there = STEPS[step].encrypt(blocks, first)
        assert there.dtype == torch.uint8
        assert torch.equal(STEPS[step].encrypt(there, second), blocks)


@pytest.mark.parametrize("step", STEPS)
def test_the_inverse_of_the_inverse_key_is_the_key(step: str):
    geometry = Geometry(blocks=6, channels=3, block_size=2)
    key = STEPS[step].draw_key(KeyStream(KEY), geometry)
    assert torch.equal(STEPS[step].inverse(STEPS[step].inverse(key)), key)


@pytest.mark.parametrize("step", [step for step in STEPS if step not in NIBBLES])
@given(geometry=GEOMETRIES)
def test_the_inverse_key_undoes_an_adaptation(step: str, geometry: Geometry):
    key = STEPS[step].draw_key(KeyStream(KEY), geometry)
    chance = generator(0, "reader")
    reader = PatchReader(
        weight=torch.randn(7, geometry.entries, generator=chance),
        position=torch.randn(geometry.blocks, 7, generator=chance),
    )
    adapted = STEPS[step].adapt(reader, key)
    again = STEPS[step].adapt(adapted, STEPS[step].inverse(key))
    each = geometry.blocks
    assert torch.equal(again.weight_of_blocks(each), reader.weight_of_blocks(each))
    assert again.position is not None
    assert reader.position is not None
    assert torch.equal(again.position, reader.position)


@pytest.mark.parametrize("step", STEPS)
@given(geometry=GEOMETRIES)
def test_the_same_stream_draws_the_same_key(step: str, geometry: Geometry):
    first, again = (STEPS[step].draw_key(KeyStream(KEY), geometry) for _ in range(2))
    assert torch.equal(first, again)


def slow_learnable_encryption(block: list[int], order: list[int], flips: list[int]) -> list[int]:
    """LE by its definition: split into halves, flip the chosen, permute, put together again."""
    halves = []
    for entry in block:
        halves += [entry // 16, entry % 16]
    flipped = [15 - half if flip else half for half, flip in zip(halves, flips, strict=True)]
    moved = [flipped[source] for source in order]
    return [16 * moved[i] + moved[i + 1] for i in range(0, len(moved), 2)]


@given(channels=st.integers(1, 4), block_size=st.integers(1, 4), blocks=st.integers(1, 4))
def test_le_is_its_definition_written_slowly(channels: int, block_size: int, blocks: int):
    geometry = Geometry(blocks=blocks, channels=channels, block_size=block_size)
    key = nibble_shuffling.draw_key(KeyStream(KEY), geometry)
    order, flips = key.tolist()
    assert sorted(order) == list(range(2 * geometry.entries))
    assert set(flips) <= {0, 1}
    images = random_blocks(geometry)
    expected = [
        [slow_learnable_encryption(block, order, flips) for block in image]
        for image in images.tolist()
    ]
    assert nibble_shuffling.encrypt(images, key).tolist() == expected


@given(geometry=GEOMETRIES)
def test_ele_is_le_with_a_key_for_every_block(geometry: Geometry):
    step = STEPS["block_nibble_shuffling"]
    key = step.draw_key(KeyStream(KEY), geometry)
    orders, flips = key.tolist()
    assert len(orders) == len(flips) == geometry.blocks
    images = random_blocks(geometry)
    expected = [
        [
            slow_learnable_encryption(block, order, flip)
            for block, order, flip in zip(image, orders, flips, strict=True)
        ]
        for image in images.tolist()
    ]
    assert step.encrypt(images, key).tolist() == expected


def test_le_parts_the_halves_of_pixels():
    """A change of one pixel's halves shows in two entries of its block, in all but rare cases."""
    geometry = Geometry(blocks=2, channels=3, block_size=4)
    key = nibble_shuffling.draw_key(KeyStream(KEY), geometry)
    blocks = random_blocks(geometry, batch=1)
    before, places = nibble_shuffling.encrypt(blocks, key), []
    for entry in range(geometry.entries):
        changed = blocks.clone()
        changed[0, 1, entry] ^= 0xFF
        where = (nibble_shuffling.encrypt(changed, key) != before).nonzero().tolist()
        assert {block for _, block, _ in where} == {1}
        places.append(len(where))
    assert places.count(2) > 40
    assert set(places) <= {1, 2}


PE = ("pixel_negative_positive", "pixel_colour_shuffling")


@pytest.mark.parametrize("steps", [PE, PE[::-1], PE[:1], PE[1:]], ids="+".join)
def test_pixel_based_encryption_moves_nothing_between_pixels(steps: tuple[str, ...]):
    """What a pixel becomes depends on that pixel alone, and on no other of the image."""
    cipher = Cipher(steps=steps, block_size=4, image_shape=(3, 8, 12))
    key = cipher.key(KEY, "test")
    image = to_image(random_blocks(cipher.geometry, batch=1))
    before = cipher.encrypt(image, key)
    for y, x in ((0, 0), (3, 4), (7, 11)):
        changed = image.clone()
        changed[0, :, y, x] += 37
        differs = (cipher.encrypt(changed, key) != before).any(dim=1)[0]
        assert differs.nonzero().tolist() == [[y, x]]


def test_pixel_based_encryption_keeps_each_pixels_values_up_to_inversion_and_order():
    cipher = Cipher(steps=PE, block_size=4, image_shape=(3, 8, 12))
    image = to_image(random_blocks(cipher.geometry, batch=1))
    encrypted = cipher.encrypt(image, cipher.key(KEY, "test"))

    def folded(x: Tensor) -> Tensor:
        return torch.minimum(x, 255 - x).sort(dim=1).values

    assert torch.equal(folded(encrypted), folded(image))
    assert not torch.equal(encrypted, image)


def test_pixels_are_inverted_one_by_one_all_over_the_image():
    """Half of the values, and of no block the same ones as of another."""
    cipher = Cipher(steps=PE[:1], block_size=4, image_shape=(3, 32, 32))
    key = cipher.key(KEY, "test")[PE[0]]
    assert key.shape == (64, 48)
    assert 0.45 < key.float().mean() < 0.55
    assert len({tuple(block.tolist()) for block in key}) == 64


def test_pixels_change_their_colours_in_every_order_all_over_the_image():
    cipher = Cipher(steps=PE[1:], block_size=4, image_shape=(3, 32, 32))
    colours = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    encrypted = cipher.encrypt(colours.expand(1, 3, 32, 32), cipher.key(KEY, "test"))
    seen = [tuple(pixel.tolist()) for pixel in encrypted[0].flatten(1).T]
    assert {tuple(sorted(pixel)) for pixel in seen} == {(10, 20, 30)}
    assert {seen.count(order) > 120 for order in set(seen)} == {True}  # 171 each on the mean
    assert len(set(seen)) == 6


def to_image(blocks: Tensor) -> Tensor:
    """Makes images of 8 by 12 pixels of six blocks; where which one lies does not matter here."""
    image = blocks.reshape(len(blocks), 3, 8, 12)
    assert to_blocks(image, 4).shape == blocks.shape
    return image


def test_inverting_is_the_exclusive_or_with_ones():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 256)
    chosen = torch.arange(256) % 3 == 0
    expected = [255 - q if q % 3 == 0 else q for q in range(256)]
    assert entries.invert(x, chosen).flatten().tolist() == expected
