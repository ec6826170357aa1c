"""Shards survive the disk bit by bit; what is no shard is refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fl_vitlora.data.class_names import write_names
from fl_vitlora.data.shards import (
    TEST_SHARD,
    Shard,
    client_shard,
    is_shard,
    open_own_shard,
    open_shard,
    read_shard,
    shard_metadata,
    write_shard,
)
from fl_vitlora.data.shelf import Shelf
from fl_vitlora.encryption.holder import Part
from fl_vitlora.encryption.storage_keys import StorageKey, StorageKeys, of_secret
from fl_vitlora.errors import UserError
from fl_vitlora.storage.checksummed import write_sealed
from tests.counting_operations import Operations

LABELS = torch.tensor([3, 1, 4, 1, 5])
KEY = of_secret(bytes(32))
KEYS = StorageKeys(roots={KEY.name: KEY.root}, source="key ring a")
NAMES = tuple("abcdef")
OWN = {"party": "client 3", "part": "train", "class_names": write_names(NAMES)}


def test_what_is_written_is_read(tmp_path: Path, images: Tensor):
    write_shard(tmp_path / "shard", Shard(images, LABELS), {"client": "0"})
    shard = open_shard(tmp_path / "shard")
    assert torch.equal(shard.images, images)
    assert torch.equal(shard.labels, LABELS)
    assert len(shard) == 5


def test_metadata_are_read_as_they_were_written(tmp_path: Path, images: Tensor):
    for metadata in ({"party": "client 0", "key_id": "0123"}, {}):
        write_shard(tmp_path / "shard", Shard(images, LABELS), metadata)
        assert shard_metadata(tmp_path / "shard") == metadata
        assert read_shard(tmp_path / "shard")[1] == metadata
    (tmp_path / "shard").write_bytes(b"no shard")
    with pytest.raises(UserError, match=r"shard cannot be read"):
        shard_metadata(tmp_path / "shard")


def test_names_of_shards_differ():
    parts: tuple[Part, ...] = get_args(Part)
    names = {client_shard(client, part) for part in parts for client in range(20)}
    assert len(names) == 60


def test_views_and_empty_shards_are_written_too(tmp_path: Path, images: Tensor):
    write_shard(tmp_path / "a", Shard(images.flip(-1).transpose(2, 3), LABELS), {})
    assert torch.equal(open_shard(tmp_path / "a").images, images.flip(-1).transpose(2, 3))
    write_shard(tmp_path / "b", Shard(images[:0], LABELS[:0]), {})
    assert len(open_shard(tmp_path / "b")) == 0


@pytest.mark.parametrize("durable", [True, False])
def test_no_half_written_file_is_left(tmp_path: Path, images: Tensor, *, durable: bool):
    for shard in (Shard(images[:2], LABELS[:2]), Shard(images, LABELS)):  # the second replaces
        write_shard(tmp_path / "shard", shard, {}, durable=durable)
        assert torch.equal(open_shard(tmp_path / "shard").images, shard.images)
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, images: Tensor, cut: int):
    write_shard(tmp_path / "shard", Shard(images, LABELS), {})
    (tmp_path / "shard").write_bytes((tmp_path / "shard").read_bytes()[:cut])
    with pytest.raises(UserError, match=f"{tmp_path / 'shard'} cannot be read"):
        open_shard(tmp_path / "shard")


@pytest.mark.parametrize("place", ["images", "metadata"])
def test_one_flipped_bit_is_refused(tmp_path: Path, images: Tensor, place: str):
    """A pixel that changed trains a model; a party that changed decrypts to noise at a rotation."""
    path = tmp_path / "shard"
    write_shard(path, Shard(images, LABELS), {"party": "client 7"})
    content = bytearray(path.read_bytes())
    content[-100 if place == "images" else content.index(b"client 7") + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged"):
        open_shard(path)


def test_a_shard_of_an_older_version_is_refused(tmp_path: Path, images: Tensor):
    save_file({"images": images, "labels": LABELS}, tmp_path / "shard", {"party": "client 0"})
    with pytest.raises(UserError, match="has no checksum, so it cannot be checked for damage"):
        open_shard(tmp_path / "shard")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"client-00007\.safetensors is missing"):
        open_shard(tmp_path / client_shard(7))


@pytest.mark.parametrize(
    "tensors",
    [
        {"images": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, dtype=torch.int64)},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(2)},
        {"images": torch.tensor(3, dtype=torch.uint8), "labels": torch.tensor(2)},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "labels": torch.zeros(3).long()},
        {"images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8)},
        {"weights": torch.zeros(2)},
    ],
    ids=["floats", "float labels", "no batch", "labels too many", "no labels", "a model"],
)
def test_a_file_of_other_tensors_is_refused(tmp_path: Path, tensors: dict[str, Tensor]):
    write_sealed(tmp_path / "shard", tensors, {})
    with pytest.raises(UserError, match=f"{tmp_path / 'shard'} is not a shard"):
        open_shard(tmp_path / "shard")


@pytest.fixture(params=[None, KEY], ids=["in the clear", "sealed"])
def key(request: pytest.FixtureRequest) -> StorageKey | None:
    found: StorageKey | None = request.param
    return found


def keys_for(key: StorageKey | None) -> StorageKeys | None:
    return None if key is None else KEYS


@pytest.mark.parametrize("kept", [5, 1, 0])
def test_a_sealed_shard_is_read_as_it_was_written(tmp_path: Path, images: Tensor, kept: int):
    path, shard = tmp_path / "shard", Shard(images[:kept].flip(-1), LABELS[:kept])
    write_shard(path, shard, OWN, KEY)
    opened, metadata = read_shard(path, KEYS)
    assert torch.equal(opened.images, shard.images)
    assert torch.equal(opened.labels, shard.labels)
    assert (opened.images.dtype, opened.labels.dtype) == (torch.uint8, torch.int64)
    assert metadata == shard_metadata(path, KEYS) == OWN
    assert is_shard(path)
    opened.images.fill_(0)  # memory of its own
    assert torch.equal(open_shard(path, KEYS).images, shard.images)


def test_a_sealed_shard_tells_a_thief_nothing(tmp_path: Path, images: Tensor):
    labels = torch.arange(5).repeat(1)
    write_shard(tmp_path / "shard", Shard(images, labels), OWN, KEY)
    content = (tmp_path / "shard").read_bytes()
    needles = [image.numpy().tobytes() for image in images]
    needles += [labels.numpy().tobytes(), b"class_names", b"train", KEY.root]
    assert not any(needle in content for needle in needles)
    assert b"client 3" in content  # the search finds: whose it is, its name tells as well
    with pytest.raises(UserError, match=f"shard is sealed under storage key {KEY.name} of client"):
        read_shard(tmp_path / "shard")
    with pytest.raises(UserError, match="is sealed under storage key"):
        shard_metadata(tmp_path / "shard")


def test_labels_are_numbered_as_the_run_does(
    tmp_path: Path, images: Tensor, key: StorageKey | None
):
    path = tmp_path / client_shard(3)
    write_shard(path, Shard(images, LABELS), OWN, key)
    for order in (NAMES, NAMES[::-1], tuple("fadbec")):
        labels = open_own_shard(path, order, keys_for(key)).labels
        assert [order[place] for place in labels] == [NAMES[place] for place in LABELS]


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({**OWN, "class_names": '["a","b","c","d","e","g"]'}, "only there: 'g'; only .* run: 'f'"),
        (
            {"party": "client 3", "part": "train"},
            "has no list of class names, because an older version",
        ),
        ({**OWN, "class_names": "10"}, "expected a list with the names of the classes"),
        (
            {**OWN, "class_names": '["a","b"]'},
            "labels from 1 to 5, but its list of class names covers only 0 to 1",
        ),
        ({**OWN, "party": "client 4"}, "is the train shard of client 4; expected .* client 3"),
        ({**OWN, "part": "test"}, "is the test shard of client 3; expected the train shard"),
        ({**OWN, "part": "validation"}, "is the validation shard of client 3; expected the train"),
    ],
    ids=[
        "another class",
        "no names",
        "a number",
        "too few names",
        "another's",
        "for testing",
        "for validation",
    ],
)
def test_a_shard_that_means_something_else_is_refused_by_name(
    tmp_path: Path, images: Tensor, metadata: dict[str, str], says: str, key: StorageKey | None
):
    path = tmp_path / client_shard(3)
    write_shard(path, Shard(images, LABELS), metadata, key)
    with pytest.raises(UserError, match=says) as caught:
        open_own_shard(path, NAMES, keys_for(key))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_in_the_clear_does_not_pass_for_a_sealed_one(tmp_path: Path, images: Tensor):
    """Else whoever can write the disk could put one of his own in its place."""
    path = tmp_path / TEST_SHARD
    write_shard(path, Shard(images, LABELS), {**OWN, "party": "test", "part": "test"})
    assert len(open_own_shard(path, NAMES)) == 5
    with pytest.raises(
        UserError, match=r"test\.safetensors is not sealed \(encrypted on disk\), but encryption"
    ):
        open_own_shard(path, NAMES, KEYS)


def test_as_many_shards_stay_open_as_memory_allows(images: Tensor):
    opened: list[str] = []

    def open_one(name: str) -> Shard:
        opened.append(name)
        return Shard(images.repeat(int(name), 1, 1, 1), LABELS)

    shelf = Shelf(open_one, most=3 * images.nbytes)
    for name in ("1", "2", "1", "2", "1"):
        assert len(shelf(name).images) == 5 * int(name)
    assert opened == ["1", "2"]
    shelf("2"), shelf("9"), shelf("9")  # one that is larger than allowed is kept alone
    shelf("1"), shelf("2")
    assert opened == ["1", "2", "9", "1", "2"]
    everything = Shelf(open_one, most=None)
    for name in ("9", "8", "9", "8"):
        everything(name)
    assert opened[5:] == ["9", "8"]


def test_the_images_of_a_shard_are_hashed_once():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    shard = Shard(images=images, labels=torch.zeros(2, dtype=torch.int64))
    first = shard.digest
    with Operations() as operations:
        assert shard.digest == first
    assert operations.counted.total() == 0
    other = Shard(images=images + 1, labels=shard.labels)
    assert other.digest != first
    assert shard.take(torch.tensor([1])).digest != first
