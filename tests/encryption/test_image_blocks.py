"""Blocks are cut as timm's patch embedding reads them: row by row, entries (channel, y, x)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import PatchEmbed
from torch import Tensor

from fl_vitlora.encryption.geometry import Geometry
from fl_vitlora.encryption.image_blocks import from_blocks, grid, to_blocks
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.steps import pixel_shuffling
from fl_vitlora.errors import UserError


def slow_blocks(images: Tensor, p: int) -> list[list[list[int]]]:
    _, channels, height, width = images.shape
    return [
        [
            [
                int(image[c, top + y, left + x])
                for c in range(channels)
                for y in range(p)
                for x in range(p)
            ]
            for top in range(0, height, p)
            for left in range(0, width, p)
        ]
        for image in images
    ]


def numbered(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


@given(p=st.integers(1, 4), rows=st.integers(1, 4), columns=st.integers(1, 4), c=st.integers(1, 3))
def test_blocks_are_those_of_a_slow_loop(p: int, rows: int, columns: int, c: int):
    images = numbered(2, c, p * rows, p * columns)
    assert to_blocks(images, p).tolist() == slow_blocks(images, p)
    assert torch.equal(from_blocks(to_blocks(images, p), p * rows, p * columns, p), images)


@pytest.fixture(scope="module")
def embedding() -> PatchEmbed:
    torch.manual_seed(0)
    return PatchEmbed(img_size=(8, 12), patch_size=4, in_chans=3, embed_dim=10).double()


def test_a_patch_embedding_is_a_product_with_the_matrix_of_blocks(embedding: PatchEmbed):
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    weight, bias = embedding.proj.weight.flatten(1), embedding.proj.bias
    product = to_blocks(images, 4) @ weight.T + bias
    assert torch.allclose(product, embedding(images), atol=1e-12, rtol=0)


def test_shuffled_weights_read_shuffled_pixels(embedding: PatchEmbed):
    """The key-dependent adaptation E' = E[:, key] (arXiv 2309.02556) undoes pixel shuffling."""
    images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    plain = embedding(images)
    key = pixel_shuffling.draw_key(
        KeyStream(bytes(32)), Geometry(blocks=6, channels=3, block_size=4)
    )
    encrypted = from_blocks(pixel_shuffling.encrypt(to_blocks(images, 4), key), 8, 12, 4)
    weight = embedding.proj.weight.detach()
    shuffled = weight.flatten(1)[:, key].reshape(weight.shape)
    read = torch.nn.functional.conv2d(encrypted, shuffled, embedding.proj.bias, stride=4)
    assert torch.allclose(read.flatten(2).transpose(1, 2), plain, atol=1e-12, rtol=0)
    assert not torch.allclose(embedding(encrypted), plain, atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "size", "nearest"),
    [(16, 16, 5, 4), (16, 24, 16, 8), (224, 224, 15, 14), (7, 7, 2, 1), (16, 16, 100, 16)],
)
def test_the_nearest_fitting_size_is_named(height: int, width: int, size: int, nearest: int):
    with pytest.raises(
        UserError, match=rf"{height}x{width} .* nearest patch size that divides it is {nearest}$"
    ):
        grid(height, width, size)
