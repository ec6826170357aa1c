"""Ciphers are bijections on images, keyed by secret and context, in any order of their steps."""

from __future__ import annotations

import hashlib
import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fl_vitlora.config import SCHEMES
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.encryption.keys import derive_key
from fl_vitlora.encryption.keystream import KeyStream
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.pixel_map import PROBES, probe
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.errors import UserError
from fl_vitlora.rng import generator

SECRET, OTHER_SECRET = bytes(range(32)), bytes(range(1, 33))
SHARED = ("block_scrambling", "pixel_shuffling", "negative_positive")  # one key for all blocks
NIBBLES = ("nibble_shuffling", "block_nibble_shuffling")  # no pixel stays whole
ORDERS = [
    *(order for n in range(4) for order in permutations(SHARED, n)),
    *((step,) for step in STEPS if step not in SHARED),
    *(SCHEMES[name] for name in ("EtC", "ELE", "PE")),
    tuple(reversed(tuple(STEPS))),
]
AFFINE = [order for order in ORDERS if not set(order) & set(NIBBLES)]
AFFINE += [tuple(step for step in reversed(list(STEPS)) if step not in NIBBLES)]
PER_BLOCK = pytest.mark.parametrize("per_block", [False, True], ids=["shared", "per block"])


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(seed, "images"))


def make(
    *steps: str, block_size: int = 4, size: tuple[int, int] = (16, 16), per_block: bool = False
) -> Cipher:
    return Cipher(steps=steps, block_size=block_size, image_shape=(3, *size), per_block=per_block)


def random_reader(cipher: Cipher, width: int = 5, seed: int = 0) -> PatchReader:
    """Reads each patch with the same kernel, in double precision."""
    chance, geometry = generator(seed, "reader"), cipher.geometry
    return PatchReader(
        weight=torch.randn(width, geometry.entries, generator=chance, dtype=torch.float64),
        position=torch.randn(geometry.blocks, width, generator=chance, dtype=torch.float64),
    )


def tokens(reader: PatchReader, images: Tensor, block_size: int) -> Tensor:
    """Reads images as the definition of a reader says, one patch after the other."""
    patches = to_blocks(images.double() / 127.5 - 1, block_size)
    assert reader.position is not None
    kernels = reader.weight_of_blocks(patches.shape[1])
    read = [patches[:, n] @ kernels[n].T + reader.position[n] for n in range(patches.shape[1])]
    return torch.stack(read, dim=1)


@pytest.mark.parametrize("steps", ORDERS, ids="+".join)
@given(
    block_size=st.integers(1, 6),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.integers(1, 4),
    batch=st.sampled_from([0, 1, 3, PROBES + 2]),
    per_block=st.booleans(),
)
def test_decryption_inverts_encryption_bit_by_bit(
    *,
    steps: tuple[str, ...],
    block_size: int,
    grid: tuple[int, int],
    channels: int,
    batch: int,
    per_block: bool,
):
    shape = (channels, block_size * grid[0], block_size * grid[1])
    cipher = Cipher(steps=steps, block_size=block_size, image_shape=shape, per_block=per_block)
    images, key = random_images(batch, *shape), cipher.key(SECRET, "test")
    encrypted = cipher.encrypt(images, key)
    assert encrypted.shape == images.shape
    assert encrypted.dtype == torch.uint8
    assert torch.equal(cipher.decrypt(encrypted, key), images)
    assert torch.equal(cipher.encrypt(cipher.decrypt(images, key), key), images)


@pytest.mark.parametrize("steps", ORDERS, ids="+".join)
@PER_BLOCK
def test_decryption_in_one_pass_inverts_encryption_in_one_pass(
    steps: tuple[str, ...], per_block: bool
):
    """Images higher than wide, wider than high; more of them than a map costs."""
    for size in ((8, 12), (12, 8)):
        cipher = make(*steps, size=size, per_block=per_block)
        images, key = random_images(PROBES + 1, 3, *size), cipher.key(SECRET, "test")
        assert torch.equal(cipher.decrypt(cipher.encrypt(images, key), key), images)


@pytest.mark.parametrize("steps", AFFINE, ids="+".join)
@PER_BLOCK
def test_an_adapted_reader_makes_the_same_tokens_of_ciphertext(
    steps: tuple[str, ...], per_block: bool
):
    """Token for token: only scrambling moves them, each with its position."""
    cipher = make(*steps, size=(8, 12), per_block=per_block)
    reader, images = random_reader(cipher), random_images(3, 3, 8, 12)
    key = cipher.key(SECRET, "test")
    read = tokens(cipher.adapt(reader, key), cipher.encrypt(images, key), 4)
    expected = tokens(reader, images, 4)
    order = key.get("block_scrambling", torch.arange(6))
    assert torch.allclose(read, expected[:, order], atol=1e-13, rtol=0)
    if steps:
        unadapted = tokens(reader, cipher.encrypt(images, key), 4)
        assert (unadapted - expected[:, order]).abs().max() > 0.1


@pytest.mark.parametrize("steps", AFFINE, ids="+".join)
@PER_BLOCK
def test_restoring_inverts_adaptation_bit_by_bit(steps: tuple[str, ...], per_block: bool):
    cipher = make(*steps, size=(8, 12), per_block=per_block)
    reader, key = random_reader(cipher), cipher.key(SECRET, "test")
    for there, back in ((cipher.adapt, cipher.restore), (cipher.restore, cipher.adapt)):
        again = back(there(reader, key), key)
        assert torch.equal(again.weight_of_blocks(6), reader.weight_of_blocks(6))
        assert again.position is not None
        assert reader.position is not None
        assert torch.equal(again.position, reader.position)


def test_adaptation_leaves_the_given_reader_as_it_is():
    cipher = make(*SCHEMES["EtC"])
    reader, key = random_reader(cipher), cipher.key(SECRET, "test")
    weight = reader.weight.clone()
    cipher.adapt(reader, key).weight.zero_()
    cipher.restore(reader, key).weight.zero_()
    assert torch.equal(reader.weight, weight)


def test_a_reader_of_the_wrong_key_is_not_restored():
    cipher = make(*SHARED)
    reader = random_reader(cipher)
    adapted = cipher.adapt(reader, cipher.key(SECRET, "test"))
    restored = cipher.restore(adapted, cipher.key(OTHER_SECRET, "test"))
    assert (restored.weight != reader.weight).float().mean() > 0.9


@pytest.mark.parametrize("steps", [("nibble_shuffling",), SCHEMES["ELE"], SCHEMES["LE"]])
def test_joined_halves_of_pixels_have_no_adaptation(steps: tuple[str, ...]):
    cipher = make(*steps)
    key = cipher.key(SECRET, "test")
    for turn in (cipher.adapt, cipher.restore):
        with pytest.raises(
            UserError, match=r"\(LE, ELE\) has no key adaptation: .*adapt=false"
        ) as e:
            turn(random_reader(cipher), key)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("steps", [order for order in ORDERS if order], ids="+".join)
def test_blocks_of_another_size_than_patches_have_no_adaptation(steps: tuple[str, ...]):
    cipher = make(*steps, block_size=4)
    reader = random_reader(make(block_size=8))
    key = cipher.key(SECRET, "test")
    for turn in (cipher.adapt, cipher.restore):
        with pytest.raises(
            UserError, match=r"blocks of 48 entries, .* patches of 192 entries, so .*; "
        ) as caught:
            turn(reader, key)
        assert "encryption.block_size" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_without_positions_scrambling_alone_has_no_adaptation():
    for steps, adapts in (((*SHARED,), False), (SHARED[1:], True)):
        cipher = make(*steps)
        placeless = PatchReader(weight=random_reader(cipher).weight, position=None)
        if adapts:
            assert cipher.adapt(placeless, cipher.key(SECRET, "test")).position is None
            continue
        with pytest.raises(UserError, match="block scrambling has no key adaptation"):
            cipher.adapt(placeless, cipher.key(SECRET, "test"))


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
@PER_BLOCK
def test_one_pass_equals_the_steps_one_after_the_other(steps: tuple[str, ...], per_block: bool):
    cipher = make(*steps, size=(8, 12), per_block=per_block)
    key, images = cipher.key(SECRET, "test"), random_images(PROBES + 2, 3, 8, 12)
    whole = probe(lambda x: cipher.encrypt_by_steps(x, key), cipher.image_shape)
    for batch in (images[: PROBES - 1], images[:PROBES], images[: PROBES + 1], images):
        encrypted = cipher.encrypt_by_steps(batch, key)
        assert torch.equal(cipher.encrypt(batch, key), encrypted)
        assert torch.equal(cipher.decrypt(encrypted, key), batch)
        assert torch.equal(whole.apply(batch), encrypted)
        assert torch.equal(whole.invert(encrypted), batch)


def test_one_pass_knows_every_pixel_of_a_large_image():
    cipher = make(*STEPS, block_size=16, size=(224, 240))
    key, images = cipher.key(SECRET, "test"), random_images(PROBES + 1, 3, 224, 240)
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
@PER_BLOCK
def test_a_wrong_key_does_not_decrypt(steps: tuple[str, ...], per_block: bool, images: Tensor):
    cipher = make(*steps, per_block=per_block)
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


NIBBLE_BITS = math.log2(math.factorial(96)) + 96  # order and bits of 2 · 4 · 4 · 3 nibbles


@pytest.mark.parametrize(
    ("steps", "bits"),
    [
        (SCHEMES["LE"], NIBBLE_BITS),
        (SCHEMES["ELE"], 64 * NIBBLE_BITS + math.log2(math.factorial(64))),
        (SCHEMES["PE"], 32 * 32 * (3 + math.log2(6))),
    ],
    ids=["LE", "ELE", "PE"],
)
def test_key_spaces_of_small_images_are_counted_by_hand(steps: tuple[str, ...], bits: float):
    assert make(*steps, size=(32, 32)).key_space_bits == pytest.approx(bits, rel=1e-9)


@pytest.mark.parametrize(
    ("step", "times"),
    [
        ("pixel_shuffling", 6),
        ("negative_positive", 6),
        ("nibble_shuffling", 6),
        *((step, 1) for step in STEPS if step not in (*SHARED[1:], "nibble_shuffling")),
    ],
)
def test_a_key_for_every_block_multiplies_the_key_space(step: str, times: int):
    """This holds for steps within blocks, unless their blocks have keys of their own anyway."""
    one, each = (make(step, size=(8, 12), per_block=p).key_space_bits for p in (False, True))
    assert one > 0
    assert each == pytest.approx(times * one)


@pytest.mark.parametrize("step", ["pixel_shuffling", "negative_positive", "nibble_shuffling"])
def test_blocks_have_keys_of_their_own_where_that_is_asked(step: str):
    """Equal blocks make equal ciphertext under one key, and unequal ones under one for each."""
    image = random_images(1, 3, 4, 4).tile(1, 1, 2, 3)
    for per_block, different in ((False, 1), (True, 6)):
        cipher = make(step, size=(8, 12), per_block=per_block)
        blocks = to_blocks(cipher.encrypt(image, cipher.key(SECRET, "test")), 4)[0]
        assert len({tuple(block.tolist()) for block in blocks}) == different


FIRST_STEPS = (
    *SHARED,
    "colour_shuffling",
    "rotation_inversion",
    "block_negative_positive",
)


def test_shared_keys_never_change():
    """What is encrypted must open with later versions; these keys were drawn by the first one."""
    key = Cipher(steps=FIRST_STEPS, block_size=2, image_shape=(3, 4, 6)).key(
        SECRET, "shared/seed 7"
    )
    assert key["block_scrambling"].tolist() == [3, 1, 2, 4, 0, 5]
    assert key["pixel_shuffling"].tolist() == [7, 11, 4, 1, 2, 6, 0, 8, 5, 10, 3, 9]
    assert key["negative_positive"].int().tolist() == [1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 0]
    assert key["block_negative_positive"].int().tolist() == [[1], [0], [1], [1], [1], [1]]


def test_shared_keys_with_fixed_entries_never_change():
    cipher = Cipher(
        steps=SHARED, block_size=2, image_shape=(3, 4, 6), fixed_blocks=3, fixed_entries=5
    )
    key = cipher.key(SECRET, "shared/seed 7")
    assert key["block_scrambling"].tolist() == [0, 1, 2, 3, 4, 5]
    assert key["pixel_shuffling"].tolist() == [8, 1, 2, 9, 4, 6, 0, 7, 3, 10, 5, 11]


FIRST_KEYS = {
    "block_scrambling": "da96051bd1a53f31",
    "pixel_shuffling": "5dedd2507111edb8",
    "negative_positive": "4f97b9ee0c76fa91",
    "colour_shuffling": "a0a429816f40db5c",
    "rotation_inversion": "cffbc3112623c6c8",
    "block_negative_positive": "8cb39faf90ce2a53",
}


def test_ciphertext_of_the_first_version_never_changes():
    """Beginnings of the SHA-256 of every key as int64, and of an image under all of them."""
    cipher = make(*FIRST_STEPS)
    key = cipher.key(SECRET, "shared/seed 0")

    def digest(tensor: Tensor) -> str:
        return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]

    assert {step: digest(key[step].to(torch.int64)) for step in FIRST_STEPS} == FIRST_KEYS
    image = torch.arange(3 * 256).remainder(251).to(torch.uint8).view(1, 3, 16, 16)
    assert digest(cipher.encrypt(image, key)) == "4045e861db7b8dcf"


def test_images_of_another_type_or_shape_are_refused(images: Tensor):
    cipher = make("negative_positive")
    key = cipher.key(SECRET, "test")
    for wrong in (images.float(), images[:, :1], images[..., :8], images[0]):
        with pytest.raises(ValueError, match="expected uint8 images"):
            cipher.encrypt(wrong, key)
        with pytest.raises(ValueError, match="expected uint8 images"):
            cipher.decrypt(wrong, key)


def test_a_block_size_that_does_not_divide_is_refused_with_one_that_does():
    with pytest.raises(
        UserError, match=r"patch size 5 .* 16x16 .* nearest patch size that divides it is 4"
    ):
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
    with pytest.raises(UserError, match="fixed_blocks 17: expected at most 16"):
        _ = Cipher(steps=(), block_size=4, image_shape=(3, 16, 16), fixed_blocks=17).geometry
