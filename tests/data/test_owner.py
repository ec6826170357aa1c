"""The owner encrypts all images that leave, and shows them with a key or without."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from fl_vitlora.config import SCHEMES, load
from fl_vitlora.data.owner import (
    NO_KEY,
    RIGHT_KEY,
    WRONG_KEY,
    divide_test_images,
    key_holder,
    pieces,
    views_of,
    write_encrypted_shards,
)
from fl_vitlora.data.shards import (
    Shard,
    client_shard,
    open_shard,
    shard_metadata,
)
from fl_vitlora.data.sources import Images
from fl_vitlora.encryption.keys import key_id
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.errors import UserError
from tests.data.digit_shards import PARTS, SECRET, TEST_PARTS, holder_of, write


@pytest.mark.parametrize("apart", [False, True], ids=["one test shard", "a test shard each"])
@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
def test_the_owner_writes_ciphertext_and_labels_and_nothing_else(
    tmp_path: Path, digits: tuple[Images, Images], scope: str, apart: bool
):
    holder = holder_of(steps=list(STEPS), scope=scope)
    content = write(tmp_path, digits, holder, apart=apart)
    assert {path.name for path in tmp_path.iterdir()} == set(content)
    for name, (plain, party, part) in content.items():
        shard = open_shard(tmp_path / name)
        assert not (shard.images == plain).all(dim=(1, 2, 3)).any()
        assert torch.equal(holder.decrypt(shard.images, party, part), plain)
        with safe_open(tmp_path / name, framework="pt") as file:
            assert set(file.keys()) == {"images", "labels"}
        assert shard_metadata(tmp_path / name) == {
            "a": "b",
            "class_names": json.dumps([str(digit) for digit in range(10)]),
            "steps": ",".join(STEPS),
            "block_size": "4",
            "fixed_blocks": "0",
            "fixed_entries": "0",
            "scope": scope,
            "seed": "0",
            "key_id": key_id(SECRET),
            "party": party,
            "part": part,
        }


@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
def test_shards_are_the_same_however_many_are_encrypted_at_once(
    tmp_path: Path, digits: tuple[Images, Images], scope: str
):
    train, test = digits
    image = 3 * 16 * 16
    for at_once in (1, 9 * image, 12 * image, 1000 * image):
        (tmp_path / str(at_once)).mkdir()
        write_encrypted_shards(
            tmp_path / str(at_once),
            train=train,
            test=test,
            parts=[np.arange(12, 24), np.array([7, 1]), np.array([3]), np.array([9, 11, 10])],
            test_parts=[np.arange(7), np.arange(7, 20), np.arange(20, 30)],
            holder=holder_of(scope=scope),
            metadata={},
            at_once=at_once,
        )
    for path in (tmp_path / "1").iterdir():
        shard = open_shard(path)
        for other in tmp_path.glob(f"*/{path.name}"):
            assert torch.equal(open_shard(other).images, shard.images)
            assert torch.equal(open_shard(other).labels, shard.labels)
            assert shard_metadata(other) == shard_metadata(path)


@given(sizes=st.lists(st.integers(0, 9)), most=st.integers(0, 20))
def test_pieces_are_all_in_order_and_as_few_as_neighbours_allow(sizes: list[int], most: int):
    groups = [sizes[piece] for piece in pieces(sizes, most)]
    assert [size for group in groups for size in group] == sizes
    assert all(sum(group) <= most or len(group) == 1 for group in groups)
    assert all(sum(group) + follower[0] > most for group, follower in pairwise(groups))


def test_labels_stay_with_their_images(tmp_path: Path, digits: tuple[Images, Images]):
    write(tmp_path, digits, holder_of(), apart=True)
    train, test = digits
    for client in range(2):
        shard = open_shard(tmp_path / client_shard(client))
        own = open_shard(tmp_path / client_shard(client, "test"))
        assert shard.labels.tolist() == train.labels[PARTS[client]].tolist()
        assert own.labels.tolist() == test.labels[TEST_PARTS[client]].tolist()


def test_plain_images_are_stored_as_they_are_and_name_no_key(
    tmp_path: Path, digits: tuple[Images, Images]
):
    content = write(tmp_path, digits, holder_of(steps=[]), apart=False)
    for name, (plain, _, _) in content.items():
        assert torch.equal(open_shard(tmp_path / name).images, plain)
        assert shard_metadata(tmp_path / name)["key_id"] == ""


def test_images_are_encrypted_in_the_shape_that_the_model_takes(
    tmp_path: Path, digits: tuple[Images, Images]
):
    holder = holder_of(size=(8, 12))
    plain, party, part = write(tmp_path, digits, holder, apart=False)[client_shard(0)]
    ciphertext = open_shard(tmp_path / client_shard(0)).images
    assert ciphertext.shape == plain.shape == (20, 3, 8, 12)
    assert torch.equal(holder.decrypt(ciphertext, party, part), plain)


@pytest.mark.parametrize(
    ("steps", "given_size", "size"),
    [
        ("ViT-blockwise", None, 16),
        ("EtC", None, 16),
        ("PE", None, 16),
        ("LE", None, 4),
        ("ELE", None, 4),
        ("EtC", 8, 8),
        ("LE", 8, 8),
        ([], None, 16),
    ],
)
def test_blocks_are_the_patches_but_for_le_and_ele(
    steps: str | list[str], given_size: int | None, size: int
):
    config = load(None, {"encryption.steps": steps, "encryption.block_size": given_size})
    holder = key_holder(config, patch_size=16, image_shape=(3, 224, 224), secret=SECRET)
    assert holder.cipher.block_size == size
    assert tuple(holder.cipher.steps) == (SCHEMES[steps] if isinstance(steps, str) else ())


def test_a_holder_is_made_as_the_configuration_says():
    overrides = {"seed": 5, "encryption.scope": "block", "encryption.fixed_blocks": 2}
    config = load(None, {**overrides, "encryption.fixed_entries": 3})
    holder = key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=SECRET)
    assert (holder.seed, holder.scope, holder.key_id) == (5, "block", key_id(SECRET))
    assert (holder.cipher.fixed_blocks, holder.cipher.fixed_entries) == (2, 3)
    assert holder.cipher.per_block
    assert not holder_of(scope="client").cipher.per_block


@pytest.mark.parametrize(
    ("given_settings", "expectation"),
    [
        ({"block_size": 5}, "patch size 5 does not divide an image of 16x16"),
        ({"fixed_blocks": 17}, "fixed_blocks 17: expected at most 16"),
        ({"fixed_entries": 49}, "fixed_entries 49: expected at most 48"),
    ],
)
def test_what_does_not_fit_the_images_is_refused(given_settings: dict[str, Any], expectation: str):
    with pytest.raises(UserError, match=expectation):
        holder_of(**given_settings)


@given(images=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 5))
def test_test_parts_are_disjoint_and_complete_and_of_like_size(
    images: int, share: float, seed: int
):
    clients = max(1, round(share * images))
    parts = divide_test_images(images, clients, seed)
    assert len(parts) == clients
    assert sorted(np.concatenate(parts).tolist()) == list(range(images))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_test_parts_are_drawn_by_the_seed():
    first, again, other = (divide_test_images(60, 4, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0], np.arange(15))


def test_fewer_test_images_than_clients_are_refused():
    with pytest.raises(UserError, match="got 3 test images for 4 clients"):
        divide_test_images(3, 4, 0)


@pytest.mark.parametrize("steps", ["ViT-blockwise", "EtC", "LE", "ELE", "PE"])
@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
def test_a_shard_is_seen_with_the_right_key_a_wrong_one_or_none(
    digits: tuple[Images, Images], scope: str, steps: str
):
    holder = holder_of(scope=scope, steps=steps)
    plain, labels = digits[1].read(np.arange(12), 16, 16), torch.from_numpy(digits[1].labels[:12])
    shard = Shard(images=holder.encrypt(plain, "client 1", "test"), labels=labels)
    views = views_of(shard, holder, "client 1")
    assert set(views) == {RIGHT_KEY, WRONG_KEY, NO_KEY}
    assert views[RIGHT_KEY] is shard
    assert torch.equal(views[NO_KEY].images, plain)
    assert all(torch.equal(view.labels, labels) for view in views.values())
    wrong = views[WRONG_KEY].images
    for other in (shard.images, plain, holder.decrypt(wrong, "client 1", "test")):
        assert not torch.equal(wrong, other)
    misread = holder.decrypt(wrong, "client 1", "test")
    assert (misread != plain).float().mean() > 0.3
    assert torch.equal(holder.impostor().decrypt(wrong, "client 1", "test"), plain)


def test_a_wrong_key_is_always_the_same_one():
    """What it is worth must not depend on when, or on which client's side, it is measured."""
    first, second = holder_of().impostor(), holder_of().impostor()
    assert first.secret == second.secret != SECRET
    assert first.cipher == second.cipher


def test_metadata_hold_no_secret(tmp_path: Path, digits: tuple[Images, Images]):
    write(tmp_path, digits, holder_of(), apart=True)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert SECRET not in content
        assert SECRET.hex().encode() not in content
        assert key_id(SECRET).encode() in content  # the search finds what is there
