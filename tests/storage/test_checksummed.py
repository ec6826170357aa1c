"""What was sealed comes back as it was, or not at all."""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fl_vitlora.storage.checksummed import DamagedFileError, read_sealed, write_sealed

TENSORS = {
    "weight": torch.arange(6.0).view(2, 3),
    "bias": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "steps": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 4, dtype=torch.uint8),
}
METADATA = {"round": "3", "title": 'é\n"', "": ""}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sealed") / "whole"
    write_sealed(path, TENSORS, METADATA)
    return path.read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "file"


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Compares names, types, shapes and bits."""
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and torch.equal(a[n].flatten().view(torch.uint8), b[n].flatten().view(torch.uint8))
        for n in a
    )


def refused(path: Path, content: bytes) -> bool:
    """Returns True if a file is refused in one line that names it; if not, it must be the same."""
    path.write_bytes(content)
    try:
        tensors, metadata = read_sealed(path)
    except DamagedFileError as error:
        assert str(error).startswith(f"{path} ")
        assert "\n" not in str(error)
        return True
    assert same(tensors, TENSORS)
    assert metadata == METADATA
    return False


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_what_is_written_is_read(sealed: bytes, place: Path):
    assert not refused(place, sealed)


def test_no_tensors_and_no_metadata_are_sealed_too(place: Path):
    write_sealed(place, {}, {})
    assert read_sealed(place) == ({}, {})


def test_views_of_one_tensor_are_written_as_what_they_show(place: Path):
    whole = torch.arange(24.0).view(4, 6)
    views = {"turned": whole[:, :3].T, "rest": whole[:, 3:]}
    write_sealed(place, views, {})
    assert same(read_sealed(place)[0], {n: t.clone() for n, t in views.items()})


def test_who_writes_into_a_tensor_does_not_change_the_file(sealed: bytes, place: Path):
    place.write_bytes(sealed)
    read_sealed(place)[0]["weight"].fill_(9)
    assert place.read_bytes() == sealed


@given(data=st.data())
def test_one_flipped_bit_is_found(sealed: bytes, place: Path, data: st.DataObject):
    bit = data.draw(st.integers(0, 8 * len(sealed) - 1))
    changed = bytearray(sealed)
    changed[bit // 8] ^= 1 << bit % 8
    assert refused(place, bytes(changed))


@given(data=st.data())
def test_a_cut_is_found(sealed: bytes, place: Path, data: st.DataObject):
    assert refused(place, sealed[: data.draw(st.integers(0, len(sealed) - 1))])


@given(data=st.data())
def test_no_damage_gives_other_content(sealed: bytes, place: Path, data: st.DataObject):
    """Overwrites a stretch, as a disk that lost a block does; the new bytes may be the old ones."""
    start = data.draw(st.integers(0, len(sealed)))
    damage = data.draw(st.binary(max_size=16))
    changed = sealed[:start] + damage + sealed[start + len(damage) :]
    assert refused(place, changed) == (changed != sealed)


@pytest.mark.parametrize(
    ("dtype", "shape", "end"),
    [
        ("U8", [2**60], 2**60),
        ("F64", [2**62, 4], 0),
        ("U8", [0, 2**63], 0),
        ("F6_E2M3", [8], 6),
        ("U8", [1], -1),
        ("U8", [-1], 0),
    ],
)
def test_a_header_that_promises_what_cannot_be_is_refused(
    place: Path, dtype: str, shape: list[int], end: int
):
    tensor = {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    header = {"__metadata__": {"sha256": "0" * 64}, "a": tensor}
    assert refused(place, with_header(header, bytes(max(0, end) if end < 100 else 8)))


def test_a_header_that_is_longer_than_the_file_is_refused(place: Path):
    assert refused(place, struct.pack("<Q", 2**60) + b"{}")
    assert refused(place, struct.pack("<Q", 99_999_999) + b"{}")


def test_a_file_without_digest_says_so(place: Path):
    save_file(TENSORS, place, METADATA)
    with pytest.raises(DamagedFileError, match="has no checksum"):
        read_sealed(place)


def test_every_part_of_a_file_is_under_the_digest(place: Path):
    """The digest of one file does not fit another, however little they differ."""
    write_sealed(place, {"a": torch.zeros(2, 3)}, {"key": "value"})
    digest = json.loads(place.read_bytes()[8:].split(b"}}")[0] + b"}}")["__metadata__"]["sha256"]
    others: list[tuple[dict[str, Tensor], dict[str, str]]] = [
        ({"b": torch.zeros(2, 3)}, {"key": "value"}),
        ({"a": torch.zeros(3, 2)}, {"key": "value"}),
        ({"a": torch.zeros(2, 3, dtype=torch.int32)}, {"key": "value"}),
        ({"a": torch.full((2, 3), -0.0)}, {"key": "value"}),
        ({"a": torch.zeros(2, 3)}, {"key": "values"}),
        ({"a": torch.zeros(2, 3)}, {"keys": "value"}),
        ({"a": torch.zeros(2, 3)}, {}),
    ]
    for tensors, metadata in others:
        save_file(tensors, place, {**metadata, "sha256": digest})
        with pytest.raises(DamagedFileError, match="is damaged"):
            read_sealed(place)
    save_file({"a": torch.zeros(2, 3)}, place, {"key": "value", "sha256": digest})
    read_sealed(place)


@pytest.mark.parametrize(
    ("name", "says"), [("nowhere", "is missing"), ("folder", "cannot be read")]
)
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, says: str):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DamagedFileError, match=f"{name} {says}"):
        read_sealed(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="folders can be synced on POSIX systems alone")
@pytest.mark.parametrize("durable", [True, False])
def test_the_folder_is_synced_after_the_file_if_it_is_to_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, durable: bool
):
    synced: list[tuple[bool, list[str]]] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, [p.name for p in tmp_path.iterdir() if p.suffix != ".tmp"]))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_sealed(tmp_path / "file", TENSORS, METADATA, durable=durable)
    assert synced == ([(False, []), (True, ["file"])] if durable else [])


def test_equal_content_gives_equal_files(sealed: bytes, place: Path) -> None:
    """The library's own order of metadata differs from call to call."""
    for _ in range(20):
        write_sealed(place, TENSORS, dict(reversed(METADATA.items())))
        assert place.read_bytes() == sealed
