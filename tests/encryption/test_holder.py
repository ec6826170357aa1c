"""The scope of keys: who has the same key as whom, and that everyone's ciphertext opens again."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from fl_vitlora.config import SCHEMES
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, KeyHolder, Part, Scope, client_party
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.encryption.keys import key_id
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError
from fl_vitlora.rng import generator

SECRET, OTHER_SECRET = bytes(range(32)), bytes(range(1, 33))
SCOPES: tuple[Scope, ...] = ("shared", "client", "image", "block")
PARTIES = [client_party(0), client_party(1), client_party(11), TEST]
SCOPED = pytest.mark.parametrize("scope", SCOPES)


def make(scope: Scope, steps: str = "ViT-blockwise", seed: int = 0) -> KeyHolder:
    cipher = Cipher(
        steps=SCHEMES[steps],
        block_size=4,
        image_shape=(3, 8, 12),
        per_block=scope == "block",
    )
    return KeyHolder(cipher=cipher, secret=SECRET, scope=scope, seed=seed)


def random_images(count: int, *, alike: bool = False) -> Tensor:
    shape = (1 if alike else count, 3, 8, 12)
    drawn = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "images"))
    return drawn.expand(count, -1, -1, -1)


def reader(holder: KeyHolder) -> PatchReader:
    chance, geometry = generator(0, "reader"), holder.cipher.geometry
    return PatchReader(
        weight=torch.randn(5, geometry.entries, generator=chance),
        position=torch.randn(geometry.blocks, 5, generator=chance),
    )


def as_text(holder: KeyHolder, party: str) -> str:
    return str({step: key.tolist() for step, key in holder.key(party).items()})


@pytest.mark.parametrize("scope", ["shared", "block"])
def test_all_parties_share_one_key(scope: Scope):
    assert len({as_text(make(scope), party) for party in PARTIES}) == 1


def test_every_client_has_a_key_of_its_own_and_test_images_another():
    keys = [make("client").key(party) for party in PARTIES]
    for one, other in combinations(keys, 2):
        assert not any(torch.equal(one[step], other[step]) for step in one)


def test_the_context_of_a_key_names_scope_or_party_and_seed():
    """So the keys of a shared scope are those that were drawn before there were scopes."""
    for scope, party, context in (
        ("shared", client_party(3), "shared/seed 7"),
        ("client", client_party(3), "client 3/seed 7"),
        ("client", TEST, "test/seed 7"),
        ("block", client_party(3), "block/seed 7"),
    ):
        holder = make(scope, seed=7)  # type: ignore[arg-type]
        expected = holder.cipher.key(SECRET, context)
        assert as_text(holder, party) == str({s: k.tolist() for s, k in expected.items()})


def test_every_image_has_a_key_of_its_own():
    """Twenty times the same image: twenty ciphertexts, in each part and of each party."""
    holder, same = make("image"), random_images(20, alike=True)
    parts: tuple[Part, ...] = ("train", "test")
    seen = [
        tuple(image.flatten().tolist())
        for party in PARTIES
        for part in parts
        for image in holder.encrypt(same, party, part)
    ]
    assert len(set(seen)) == len(seen) == 4 * 2 * 20


@pytest.mark.parametrize("scope", ["shared", "client", "block"])
def test_one_key_makes_equal_ciphertext_of_equal_images(scope: Scope):
    holder, same = make(scope), random_images(20, alike=True)
    train, test = (holder.encrypt(same, TEST, part) for part in ("train", "test"))
    assert torch.equal(train, train[:1].expand_as(train))
    assert torch.equal(train, test)


def test_an_images_key_goes_by_its_place_whatever_follows():
    holder, images = make("image"), random_images(9)
    assert torch.equal(
        holder.encrypt(images[:3], TEST, "test"), holder.encrypt(images, TEST, "test")[:3]
    )


@pytest.mark.parametrize("step", ["pixel_shuffling", "negative_positive"])
def test_in_the_scope_of_blocks_equal_blocks_become_unequal(step: str):
    image = random_images(1)[:, :, :4, :4].tile(1, 1, 2, 3)
    for scope, different in (("shared", 1), ("block", 6)):
        holder = make(scope)  # type: ignore[arg-type]
        alone = replace(holder, cipher=replace(holder.cipher, steps=(step,)))
        blocks = to_blocks(alone.encrypt(image, TEST), 4)[0]
        assert len({tuple(block.tolist()) for block in blocks}) == different


@SCOPED
@pytest.mark.parametrize("steps", [*SCHEMES, None])
@pytest.mark.parametrize("part", ["train", "test"])
def test_many_parties_are_encrypted_together_as_one_by_one(
    scope: Scope, steps: str | None, part: Part
):
    holder, images, sizes = make(scope, steps or "EtC"), random_images(15), [2, 0, 12, 1]
    if steps is None:
        holder = replace(holder, cipher=replace(holder.cipher, steps=()))
    together = holder.encrypt_all(images, PARTIES, sizes, part)
    for own, party, some in zip(together, PARTIES, images.split(sizes), strict=True):
        assert torch.equal(own, holder.encrypt(some, party, part))


@SCOPED
@pytest.mark.parametrize("steps", SCHEMES)
@pytest.mark.parametrize("count", [0, 1, 12])
def test_decryption_inverts_encryption_bit_by_bit(scope: Scope, steps: str, count: int):
    holder, images = make(scope, steps), random_images(count)
    for party in PARTIES:
        encrypted = holder.encrypt(images, party, "test")
        assert (encrypted.shape, encrypted.dtype) == (images.shape, torch.uint8)
        assert torch.equal(holder.decrypt(encrypted, party, "test"), images)
        if count:
            assert not torch.equal(encrypted, images)


@pytest.mark.parametrize("scope", ["client", "image"])
def test_another_party_does_not_decrypt(scope: Scope):
    holder, images = make(scope), random_images(12)
    encrypted = holder.encrypt(images, client_party(0))
    for party in PARTIES[1:]:
        assert (holder.decrypt(encrypted, party) != images).float().mean() > 0.9


@SCOPED
def test_another_seed_or_secret_gives_another_key(scope: Scope):
    holder, images = make(scope), random_images(3)
    others = (replace(holder, seed=1), replace(holder, secret=OTHER_SECRET), holder.impostor())
    encrypted = [h.encrypt(images, TEST) for h in (holder, *others)]
    assert all(not torch.equal(a, b) for a, b in combinations(encrypted, 2))
    for other in others:
        assert (other.decrypt(encrypted[0], TEST) != images).float().mean() > 0.9


def test_scopes_do_not_share_keys():
    encrypted = [make(scope).encrypt(random_images(2), TEST) for scope in SCOPES]
    assert all(not torch.equal(a, b) for a, b in combinations(encrypted, 2))


@SCOPED
def test_a_holder_shows_no_secret(scope: Scope):
    shown = repr(make(scope))
    assert f"scope='{scope}'" in shown
    assert "secret" not in shown
    assert repr(SECRET) not in shown
    assert SECRET.hex() not in shown


def test_a_holder_names_its_secret_and_counts_the_keys_of_an_image():
    holder = make("image")
    assert holder.key_id == key_id(SECRET)
    assert replace(holder, secret=OTHER_SECRET).key_id == key_id(OTHER_SECRET)
    assert holder.key_space_bits == holder.cipher.key_space_bits == make("client").key_space_bits
    assert make("block").key_space_bits > holder.key_space_bits


def test_with_a_key_for_every_image_there_is_no_one_key_and_no_adaptation():
    holder = make("image")
    for refused in (
        lambda: holder.key(TEST),
        lambda: holder.adapt(reader(holder), TEST),
        lambda: holder.restore(reader(holder), TEST),
    ):
        with pytest.raises(
            UserError, match=r"scope image: every image has its own key.*expected scope"
        ) as e:
            refused()
        assert "\n" not in str(e.value)


@SCOPED
def test_without_steps_nobody_needs_a_key(scope: Scope):
    plain = replace(make(scope), cipher=replace(make(scope).cipher, steps=()))
    images = random_images(12)
    assert plain.key(TEST) == {}
    assert torch.equal(plain.encrypt(images, TEST), images)
    assert torch.equal(plain.adapt(reader(plain), TEST).weight, reader(plain).weight)


@pytest.mark.parametrize("scope", ["shared", "client", "block"])
@pytest.mark.parametrize("steps", ["ViT-blockwise", "EtC", "PE"])
def test_a_reader_is_adapted_to_the_key_of_its_party(scope: Scope, steps: str):
    holder = make(scope, steps)
    for party in PARTIES:
        adapted = holder.adapt(reader(holder), party)
        expected = holder.cipher.adapt(reader(holder), holder.key(party))
        assert torch.equal(adapted.weight, expected.weight)
        restored = holder.restore(adapted, party)
        assert torch.equal(restored.weight_of_blocks(6), reader(holder).weight_of_blocks(6))
