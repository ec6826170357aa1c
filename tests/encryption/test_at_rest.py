"""What is sealed comes back as it was to who has the key, and to nobody else."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fl_vitlora.encryption import at_rest
from fl_vitlora.encryption.at_rest import seal, sealed_under, unseal, unseal_text
from fl_vitlora.encryption.storage_keys import StorageKeys, of_secret
from fl_vitlora.errors import UserError
from fl_vitlora.storage.checksummed import DamagedFileError

KEY, OTHER = of_secret(bytes(32)), of_secret(bytes(range(32)))
KEYS = StorageKeys(roots={KEY.name: KEY.root, OTHER.name: OTHER.root}, source="key ring a")
TEXT, PARTY = b"what was written", "client 3"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sealed") / "file"


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_rest, "CHUNK", 64)


def written(place: Path, body: bytes, text: bytes = TEXT) -> bytes:
    content = b"".join(seal(text, memoryview(body), KEY, PARTY))
    place.write_bytes(content)
    return content


def refused(place: Path, content: bytes) -> bool:
    """Returns True if a file is refused in one line that names it."""
    place.write_bytes(content)
    try:
        unseal(place, KEYS)
    except UserError as error:
        assert str(error).startswith(f"{place} ")
        assert "\n" not in str(error)
        return True
    return False


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 128, 129, 1000])
def test_what_is_sealed_comes_back(place: Path, size: int):
    body = bytes(number % 251 for number in range(size))
    written(place, body)
    assert unseal(place, KEYS) == (TEXT, bytearray(body))
    assert unseal_text(place, KEYS) == TEXT
    assert sealed_under(place) == (KEY.name, PARTY)


def test_every_byte_is_authenticated(place: Path):
    content = written(place, bytes(100))
    for number in range(len(content)):
        changed = bytearray(content)
        changed[number] ^= 1 << number % 8
        assert refused(place, bytes(changed)), number


@given(data=st.data())
def test_no_cut_no_addition_and_no_exchange_is_taken(place: Path, data: st.DataObject):
    content = written(place, bytes(300))
    start, end = sorted(data.draw(st.integers(0, len(content))) for _ in range(2))
    other = data.draw(st.binary(max_size=40))
    changed = content[:start] + other + content[end:]
    assert refused(place, changed) == (changed != content)


def test_chunks_of_one_file_do_not_change_places(place: Path):
    content, chunk = written(place, bytes(192)), 64 + at_rest.TAG
    first, second = len(content) - 3 * chunk, len(content) - 2 * chunk
    swapped = content[:first] + content[second:-chunk] + content[first:second] + content[-chunk:]
    assert len(swapped) == len(content)
    assert refused(place, swapped)


def test_chunks_of_another_file_under_the_same_key_are_not_taken(place: Path):
    one, other = written(place, bytes(64)), written(place, bytes(64))
    assert refused(place, one[:-80] + other[-80:])


def test_the_end_cannot_be_cut_off_at_a_chunk_by_a_changed_header(place: Path):
    """The header's lengths are authenticated, and so is which chunk is the last."""
    content = written(place, bytes(128))
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    size = header["sealed"]["shape"][0] - 64 - at_rest.TAG
    header["sealed"] |= {"shape": [size], "data_offsets": [0, size]}
    text = json.dumps(header).encode()
    shorter = struct.pack("<Q", len(text)) + text + content[8 + length :][:size]
    assert refused(place, shorter)


def test_two_files_have_nothing_in_common(place: Path):
    """The same content under the same key: another salt, so another key, and other bytes."""
    one, other = (written(place, bytes(4096)) for _ in range(2))
    stretches = {one[start : start + 16] for start in range(len(one) - 4200, len(one) - 16)}
    assert not any(stretch in other[-4200:] for stretch in stretches)


def test_what_is_sealed_is_nowhere_in_the_file(place: Path):
    body = bytes(range(256)) * 4
    content = written(place, body, b'{"class_names": ["patient"]}')
    assert not any(body[start : start + 8] in content for start in range(256))
    assert b"patient" not in content
    assert KEY.root not in content
    assert KEY.of_party(PARTY) not in content


def test_the_file_is_one_of_safetensors_that_holds_ciphertext_alone(place: Path):
    written(place, bytes(100))
    assert list(load_file(place)) == ["sealed"]


def test_a_chunk_is_aes_gcm_under_a_nonce_that_counts(place: Path):
    """By hand: the second chunk of three, whose nonce is its number and no last mark."""
    body = bytes(range(150))
    content = written(place, body)
    length = 8 + struct.unpack("<Q", content[:8])[0]
    told = json.loads(content[8:length])["__metadata__"]
    key, check = at_rest._derive(KEY.of_party(PARTY), bytes.fromhex(told["salt"]))
    assert check.hex() == told["check"]
    start = length + len(TEXT) + 16
    nonces = [bytes(10) + bytes([number, number == 3]) for number in range(4)]
    chunks = [content[at : at + 80] for at in range(start, len(content), 80)]
    opened = [
        AESGCM(key).decrypt(nonce, chunk, content[:length])
        for nonce, chunk in zip(nonces[1:], chunks, strict=True)
    ]
    assert b"".join(opened) == body
    text = content[length:start]
    assert AESGCM(key).decrypt(nonces[0], text, content[:length]) == TEXT


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            StorageKeys(),
            f"is sealed under storage key {KEY.name} of client 3, but no key was given",
        ),
        (
            StorageKeys(roots={OTHER.name: OTHER.root}, source="key ring b"),
            f"is sealed under storage key {KEY.name} of client 3, but key ring b has only "
            f"{OTHER.name}",
        ),
        (
            StorageKeys(parties={(KEY.name, "client 4"): bytes(32)}, source="storage key c"),
            f"but storage key c has only {KEY.name} for client 4",
        ),
        (StorageKeys(roots={KEY.name: OTHER.root}), f"was not encrypted with the key {KEY.name}"),
        (
            StorageKeys(parties={(KEY.name, PARTY): bytes(32)}),
            f"was not encrypted with the key {KEY.name}",
        ),
    ],
    ids=["none", "another ring", "another party's", "a false root", "a false key"],
)
def test_a_wrong_key_is_one_line(place: Path, keys: StorageKeys, says: str):
    written(place, bytes(100))
    for opens in (unseal, unseal_text):
        with pytest.raises(UserError, match=says) as caught:
            opens(place, keys)
        assert str(place) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_key_of_one_party_opens_its_files_and_no_others(place: Path):
    written(place, bytes(100))
    own = StorageKeys(parties={(KEY.name, PARTY): KEY.of_party(PARTY)})
    assert unseal(place, own)[0] == TEXT
    place.write_bytes(b"".join(seal(TEXT, memoryview(b""), KEY, "client 4")))
    with pytest.raises(UserError, match="of client 4"):
        unseal(place, own)


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 7, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"[]"],
    ids=["empty", "short", "long header", "a list"],
)
def test_what_is_no_sealed_file_is_told(place: Path, content: bytes):
    place.write_bytes(content)
    assert sealed_under(place) is None
    with pytest.raises(DamagedFileError, match="is not sealed"):
        unseal(place, KEYS)


@pytest.mark.parametrize("size", [2**62, -1, 10**30])
def test_a_header_that_promises_what_is_not_there_allocates_nothing(place: Path, size: int):
    content = written(place, bytes(100))
    length = struct.unpack("<Q", content[:8])[0]
    for where in ("shape", "text_bytes"):
        header = json.loads(content[8 : 8 + length])
        if where == "shape":
            header["sealed"]["shape"] = [size]
        else:
            header["__metadata__"]["text_bytes"] = str(size)
        text = json.dumps(header).encode()
        assert refused(place, struct.pack("<Q", len(text)) + text + content[8 + length :])
