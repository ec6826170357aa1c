"""Ciphers are bijections on images, keyed by secret and context, in any order of their steps."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_vitlora.config import SCHEMES
from fl_vitlora.encryption.blocks import to_blocks
from fl_vitlora.encryption.cipher import STEPS, Cipher
from fl_vitlora.encryption.keys import derive_key
from fl_vitlora.encryption.reader import Reader
from fl_vitlora.encryption.stream import KeyStream
from fl_vitlora.errors import UserError
from fl_vitlora.rng import generator

SECRET, OTHER_SECRET = bytes(range(32)), bytes(range(1, 33))
SHARED = ("block_scrambling", "pixel_shuffling", "negative_positive")  # one key for all blocks
ORDERS = [
    *(order for n in range(4) for order in permutations(SHARED, n)),
    *((step,) for step in STEPS if step not in SHARED),
    SCHEMES["EtC"],
    tuple(reversed(tuple(STEPS))),
]


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "images"))


def make(*steps: str, block_size: int = 4, size: tuple[int, int] = (16, 16)) -> Cipher:
    return Cipher(steps=steps, block_size=block_size, image_shape=(3, *size))


@pytest.mark.parametrize("steps", ORDERS, ids="+".join)
@given(
    block_size=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 4),
    batch=st.integers(0, 3),
)
def test_decryption_inverts_encryption_bit_by_bit(
    steps: tuple[str, ...], block_size: int, grid: tuple[int, int], channels: int, batch: int
):
    shape = (channels, block_size * grid[0], block_size * grid[1])
    cipher = Cipher(steps=steps, block_size=block_size, image_shape=shape)
    images, key = random_images(batch, *shape), cipher.key(SECRET, "test")
    encrypted = cipher.encrypt(images, key)
    assert encrypted.shape == images.shape
    assert encrypted.dtype == torch.uint8
    assert torch.equal(cipher.decrypt(encrypted, key), images)
    assert torch.equal(cipher.encrypt(cipher.decrypt(images, key), key), images)


@pytest.mark.parametrize("step", [step for step in STEPS if step not in SHARED])
def test_steps_with_a_key_for_every_block_have_no_adaptation(step: str):
    cipher = make(step)
    reader = Reader(weight=torch.eye(48), bias=torch.zeros(48), position=None)
    with pytest.raises(UserError, match=f"{step} has no key adaptation"):
        cipher.adapt(reader, cipher.key(SECRET, "test"))


def test_rotation_and_inversion_give_the_eight_symmetries_of_a_square():
    cipher = make("rotation_inversion", size=(64, 64))
    square = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    image = square.repeat(1, 3, 16, 16)
    blocks = to_blocks(cipher.encrypt(image, cipher.key(SECRET, "test")), 4)[0]
    seen = {tuple(block[:16].tolist()) for block in blocks}
    turns = [torch.rot90(square[0, 0], k) for k in range(4)]
    assert seen == {tuple(s.flatten().tolist()) for t in turns for s in (t, t.flip(1))}


def test_colour_shuffling_gives_every_order_of_channels_and_keeps_places():
    cipher = make("colour_shuffling", size=(64, 64))
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    encrypted = cipher.encrypt(image, cipher.key(SECRET, "test"))
    seen = {tuple(pixel.tolist()) for pixel in encrypted[0].flatten(1).T}
    assert seen == set(permutations((10, 20, 30)))


@pytest.mark.parametrize("steps", ORDERS, ids="+".join)
def test_one_pass_equals_the_steps_one_after_the_other(steps: tuple[str, ...], images: Tensor):
    cipher = make(*steps)
    key = cipher.key(SECRET, "test")
    assert torch.equal(cipher.encrypt(images, key), cipher.encrypt_by_steps(images, key))


def test_one_pass_knows_every_pixel_of_a_large_image():
    cipher = make(*STEPS, block_size=16, size=(224, 240))
    key, images = cipher.key(SECRET, "test"), random_images(2, 3, 224, 240)
    assert torch.equal(cipher.encrypt(images, key), cipher.encrypt_by_steps(images, key))


@pytest.mark.parametrize("step", ["block_scrambling", "pixel_shuffling"])
def test_scrambling_and_shuffling_only_permute(step: str, images: Tensor):
    cipher = make(step)
    encrypted = cipher.encrypt(images, cipher.key(SECRET, "test"))
    assert not torch.equal(encrypted, images)
    assert torch.equal(encrypted.flatten(1).sort().values, images.flatten(1).sort().values)


def test_block_scrambling_moves_whole_blocks(images: Tensor):
    cipher = make("block_scrambling")
    key = cipher.key(SECRET, "test")
    encrypted, order = cipher.encrypt(images, key), key["block_scrambling"].tolist()
    for target, source in enumerate(order):
        y, x, v, u = (4 * i for i in (*divmod(target, 4), *divmod(source, 4)))
        assert torch.equal(
            encrypted[:, :, y : y + 4, x : x + 4], images[:, :, v : v + 4, u : u + 4]
        )


def test_pixel_shuffling_stays_within_its_block_and_mixes_colours(images: Tensor):
    cipher = make("pixel_shuffling")
    key = cipher.key(SECRET, "test")
    encrypted, order = cipher.encrypt(images, key), key["pixel_shuffling"].tolist()
    for target, source in enumerate(order):
        c, y, x = target // 16, target // 4 % 4, target % 4
        d, v, u = source // 16, source // 4 % 4, source % 4
        assert torch.equal(encrypted[:, c, y::4, x::4], images[:, d, v::4, u::4])
    assert any(target // 16 != source // 16 for target, source in enumerate(order))


def test_negative_positive_turns_chosen_pixels_q_into_255_minus_q(images: Tensor):
    cipher = make("negative_positive")
    key = cipher.key(SECRET, "test")
    mask = key["negative_positive"].reshape(3, 4, 4).tile(1, 4, 4)
    slow = torch.where(mask, 255 - images.int(), images.int())
    assert torch.equal(cipher.encrypt(images, key).int(), slow)
    assert 0 < int(key["negative_positive"].sum()) < 48


def test_no_steps_leave_images_plain(images: Tensor):
    assert torch.equal(make().encrypt(images, {}), images)
    assert make().key(SECRET, "test") == {}


def test_the_order_of_steps_matters_where_they_do_not_commute(images: Tensor):
    one, other = (
        make("pixel_shuffling", "negative_positive"),
        make("negative_positive", "pixel_shuffling"),
    )
    key = one.key(SECRET, "test")
    assert not torch.equal(one.encrypt(images, key), other.encrypt(images, key))


@pytest.mark.parametrize("steps", [order for order in ORDERS if order], ids="+".join)
def test_a_wrong_key_does_not_decrypt(steps: tuple[str, ...], images: Tensor):
    cipher = make(*steps)
    encrypted = cipher.encrypt(images, cipher.key(SECRET, "test"))
    for wrong in (cipher.key(OTHER_SECRET, "test"), cipher.key(SECRET, "another")):
        assert (cipher.decrypt(encrypted, wrong) != images).float().mean() > 0.25


def test_the_same_secret_and_context_give_the_same_key():
    cipher = make(*STEPS)
    first, second = cipher.key(SECRET, "shared/seed 0"), cipher.key(SECRET, "shared/seed 0")
    assert first.keys() == second.keys() == set(STEPS)
    assert all(torch.equal(first[step], second[step]) for step in STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_another_context_or_secret_gives_another_key(step: str):
    cipher = make(step)
    keys = [
        cipher.key(secret, context)[step].tolist()
        for secret in (SECRET, OTHER_SECRET)
        for context in ("a", "b")
    ]
    assert len({str(key) for key in keys}) == 4


def test_a_step_has_the_same_key_whatever_steps_surround_it():
    alone, together = make("pixel_shuffling"), make(*SHARED)
    key = "pixel_shuffling"
    assert torch.equal(alone.key(SECRET, "c")[key], together.key(SECRET, "c")[key])


def test_steps_draw_from_streams_of_their_own():
    """One stream for all would let the bits of one step tell about the order of another."""
    key = make(*SHARED).key(SECRET, "c")
    for step, found in key.items():
        stream = KeyStream(derive_key(SECRET, f"c/{step}"))
        assert torch.equal(found, STEPS[step].draw_key(stream, make().geometry))


@pytest.mark.parametrize(
    ("steps", "bits"),
    [
        (("block_scrambling",), 1214.8),
        (("pixel_shuffling",), 6259.4),
        (("negative_positive",), 768.0),
        (SHARED, 1214.8 + 6259.4 + 768.0),
        (SCHEMES["EtC"], 2505.5),
        ((), 0.0),
    ],
)
def test_key_spaces_of_vit_base_are_those_of_the_literature(steps: tuple[str, ...], bits: float):
    cipher = make(*steps, block_size=16, size=(224, 224))
    assert (cipher.geometry.blocks, cipher.geometry.entries) == (196, 768)
    assert cipher.key_space_bits == pytest.approx(bits, abs=0.1)


def test_images_of_another_type_or_shape_are_refused(images: Tensor):
    cipher = make("negative_positive")
    key = cipher.key(SECRET, "test")
    for wrong in (images.float(), images[:, :1], images[..., :8], images[0]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            cipher.encrypt(wrong, key)
        with pytest.raises(ValueError, match="expected uint8 images"):
            cipher.decrypt(wrong, key)


def test_a_block_size_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(UserError, match=r"patch size 5 .* 16x16 .* nearest that does is 4"):
        _ = make(block_size=5).geometry


def test_encryption_leaves_the_plain_images_as_they_are(images: Tensor):
    before, cipher = images.clone(), make(*SHARED)
    cipher.encrypt(images, cipher.key(SECRET, "test")).fill_(0)
    make().encrypt(images, {})
    assert torch.equal(before, images)


@pytest.mark.parametrize(("blocks", "entries"), [(0, 0), (4, 12), (16, 48)])
def test_restricted_permutations_leave_at_least_so_many_in_place(blocks: int, entries: int):
    cipher = Cipher(
        steps=("block_scrambling", "pixel_shuffling"),
        block_size=4,
        image_shape=(3, 16, 16),
        fixed_blocks=blocks,
        fixed_entries=entries,
    )
    key = cipher.key(SECRET, "test")
    for step, length, fixed in (("block_scrambling", 16, blocks), ("pixel_shuffling", 48, entries)):
        still = int((key[step] == torch.arange(length)).sum())
        assert fixed <= still <= (length if fixed == length else fixed + 5)
        assert key[step].sort().values.tolist() == list(range(length))


def test_restriction_shrinks_the_key_space_to_its_published_bound():
    free = make("block_scrambling", "pixel_shuffling").key_space_bits
    bound = Cipher(
        steps=("block_scrambling", "pixel_shuffling"),
        block_size=4,
        image_shape=(3, 16, 16),
        fixed_blocks=2,
        fixed_entries=3,
    ).key_space_bits
    assert free - bound == pytest.approx(1 + 2.585, abs=1e-3)  # log2 of 2! and of 3!


def test_more_fixed_than_there_are_is_refused():
    with pytest.raises(UserError, match="fixed_blocks 17: there are 16"):
        _ = Cipher(steps=(), block_size=4, image_shape=(3, 16, 16), fixed_blocks=17).geometry
