"""An owner encrypts its own folder: the shard is the simulation's, and only its owner reads it."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fl_vitlora.config import DataConfig, load
from fl_vitlora.config.schema import SCHEMES
from fl_vitlora.data import sources
from fl_vitlora.data.owner import describe, key_holder, write_encrypted_shards
from fl_vitlora.data.shard_pieces import ShardContent, encrypt_shard, open_pieces
from fl_vitlora.data.shards import Shard, open_shard, read_shard, shard_metadata, write_shard
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.keys import key_id, open_ring
from fl_vitlora.encryption.storage_keys import StorageKeys, of_ring, of_secret, open_party_keys
from tests.made_up_owners import CLASSES, make_folder, program, resized, settle
from tests.waiting import wait_until

MODEL = ("--model", "vit_letters_16")
SHARD = "client-00003.safetensors"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "own", seed=1)


def plain_bytes(folder: Path) -> list[bytes]:
    """Returns the pixels of all images of a folder as they are before encryption."""
    return [resized(path).transpose(2, 0, 1).tobytes() for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
@pytest.mark.parametrize("at_once", [1, 5000, 2**25])
@pytest.mark.parametrize("at_rest", ["ring", "none"])
def test_a_shard_that_is_made_piece_by_piece_is_that_of_the_simulation(
    tmp_path: Path, scope: str, at_once: int, at_rest: str
) -> None:
    config = load(None, {"encryption.scope": scope})
    train, test = sources.load(DataConfig(limit=20))
    secret = bytes(range(32))
    holder = key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=secret)
    storage = of_secret(secret) if at_rest == "ring" else None
    parts = [np.arange(0), np.arange(3, 17)]
    for name in ("simulated", "own"):
        (tmp_path / name).mkdir()
    write_encrypted_shards(
        tmp_path / "simulated",
        train=train,
        test=test,
        parts=parts,
        test_parts=[],
        holder=holder,
        metadata={},
        storage=storage,
    )
    path = tmp_path / "simulated" / "client-00001.safetensors"
    keys = of_ring_of(secret)
    expected, metadata = read_shard(path, keys)
    content = ShardContent(images=train, positions=parts[1], party=client_party(1), part="train")
    own = tmp_path / "own" / path.name
    encrypt_shard(own, content, holder=holder, metadata=metadata, storage=storage, at_once=at_once)
    found, told = read_shard(own, keys)
    assert told == metadata
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    if storage is None:
        assert own.read_bytes() == path.read_bytes()
    opened = open_pieces(own, keys)
    assert torch.equal(torch.cat(list(opened.pieces)), expected.images)
    assert torch.equal(opened.labels, expected.labels)


def of_ring_of(secret: bytes) -> StorageKeys:
    storage = of_secret(secret)
    return StorageKeys(roots={storage.name: storage.root})


@pytest.mark.parametrize(
    "settings",
    [
        *[("--scheme", scheme) for scheme in SCHEMES],
        *[("--scope", scope) for scope in ("client", "image", "block")],
        ("--set", "encryption.at_rest=none"),
    ],
    ids=lambda words: words[1],
)
def test_the_owner_gets_its_images_back_to_the_bit(
    tmp_path: Path, own: Path, settings: tuple[str, ...]
) -> None:
    ring, out = tmp_path / "keys" / "own.key", tmp_path / "out"
    program("encrypt", own, out, "--client", 3, "--key", ring, *MODEL, *settings)
    for shard, split in ((SHARD, "train"), ("client-00003-test.safetensors", "test")):
        program("decrypt", out / shard, tmp_path / "again" / split, "--key", ring)
        for name in CLASSES:
            files = sorted((tmp_path / "again" / split / name).iterdir())
            originals = sorted((own / split / name).iterdir())
            assert len(files) == len(originals)
            for file, original in zip(files, originals, strict=True):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                assert np.array_equal(np.asarray(Image.open(file)), resized(original))


def test_nothing_plain_is_in_the_files_of_the_owner(tmp_path: Path, own: Path) -> None:
    """Neither the pixels, as they were or in PNG files, nor names of classes or of folders."""
    program("encrypt", own, tmp_path / "out", "--key", tmp_path / "own.key", *MODEL, "--png")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert len(shards) == 2
    plain = plain_bytes(own)
    assert len(plain) == 18
    for path in shards:
        content = path.read_bytes()
        assert not any(pixels[:64] in content for pixels in plain)
        assert b"hen" not in content
        assert str(own).encode() not in content
    pngs = [path for path in files if path.suffix == ".png"]
    assert len(files) == len(shards) + len(pngs)
    seen = {np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes() for path in pngs}
    assert len(seen) == 18
    assert not seen & set(plain)


def test_png_files_have_the_names_of_the_images_and_the_ciphertext_of_the_shard(
    tmp_path: Path, own: Path
) -> None:
    out, ring = tmp_path / "out", tmp_path / "own.key"
    words = ("--key", ring, *MODEL, "--png", "--copies", 3, "--augment", "crop")
    program("encrypt", own, out, *words)
    names = {path.relative_to(own) for path in own.rglob("*.png")}
    assert {path.relative_to(out / "png") for path in (out / "png").rglob("*.png")} == names
    shard = open_shard(out / "client-00000.safetensors", of_ring(open_ring(ring)))
    assert len(shard) == 3 * 12
    seen = {image.numpy().tobytes() for image in shard.images[:12]}
    training = (out / "png" / "train").rglob("*.png")
    assert {np.asarray(Image.open(p)).transpose(2, 0, 1).tobytes() for p in training} == seen


def written(path: Path) -> tuple[int, int]:
    """Returns which file a path leads to, and when its content was written."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_a_finished_shard_is_not_made_again(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settle()
    out, words = tmp_path / "out", ("--key", tmp_path / "own.key", *MODEL)
    program("encrypt", own, out, *words)
    before = {path: written(path) for path in out.iterdir()}
    capsys.readouterr()
    program("encrypt", own, out, *words)
    assert capsys.readouterr().out.count("was made before and is whole") == len(before) == 2
    assert {path: written(path) for path in out.iterdir()} == before


@pytest.mark.parametrize("change", ["image", "seed", "damage", "ring", "client"])
def test_another_shard_is_replaced_only_on_request(
    tmp_path: Path, own: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out, shard = tmp_path / "out", tmp_path / "out" / "client-00000.safetensors"
    words: list[object] = ["encrypt", own, out, "--key", tmp_path / "own.key", *MODEL]
    settle()
    program(*words)
    if change == "image":
        file = next(own.rglob("*.png"))
        file.write_bytes(sorted(own.rglob("*.png"))[-1].read_bytes())
        settle()
    elif change == "seed":
        words += ["--seed", 5]
    elif change == "ring":
        words[4] = tmp_path / "other.key"
    elif change == "damage":
        content = bytearray(shard.read_bytes())
        content[-30] ^= 1
        shard.write_bytes(content)
    else:
        (out / SHARD).write_bytes(shard.read_bytes())
        words += ["--client", 3]
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(SystemExit) as ended:
        program(*words)
    assert ended.value.code == 2
    assert "--replace" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    program(*words, "--replace")
    name = SHARD if change == "client" else shard.name
    assert (out / name).read_bytes() != before[out / name]
    program(*words)  # now it is the right one


def test_a_half_made_shard_is_never_taken_for_a_finished_one(tmp_path: Path) -> None:
    own = make_folder(tmp_path / "own", seed=1, each=150, splits=False)
    out = tmp_path / "out"
    words = ["encrypt", own, out, "--key", tmp_path / "own.key", "--image-size", 448]
    words += ["--patch-size", 16]
    code = "import sys; from fl_vitlora.command_line.tools import main; main(sys.argv[1:])"
    running = subprocess.Popen([sys.executable, "-c", code, *map(str, words)])
    wait_until(lambda: any(out.glob(".*.tmp")))
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (out / "client-00000.safetensors").exists()
    program(*words)
    assert [path.name for path in out.iterdir()] == ["client-00000.safetensors"]
    keys = of_ring(open_ring(tmp_path / "own.key"))
    assert len(open_shard(out / "client-00000.safetensors", keys)) == 450


def test_owners_that_lack_classes_number_them_as_the_experiment_does(tmp_path: Path) -> None:
    own = make_folder(tmp_path / "own", seed=1, classes=("hen",))
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(["dog", "hen", "cat"]))
    ring, out = tmp_path / "own.key", tmp_path / "out"
    program("encrypt", own, out, "--key", ring, *MODEL, "--classes", classes)
    shard, metadata = read_shard(out / "client-00000.safetensors", of_ring(open_ring(ring)))
    assert json.loads(metadata["class_names"]) == ["dog", "hen", "cat"]
    assert set(shard.labels.tolist()) == {1}


def test_the_configuration_of_the_experiment_decides(tmp_path: Path) -> None:
    """It also decides that test images are held out, if every client tests on its own images."""
    own = make_folder(tmp_path / "own", seed=1, splits=False, each=10)
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        "encryption: {scope: client, steps: EtC}\nseed: 7\ndata: {name: elsewhere, "
        "partition: natural, test_fraction: 0.3, validation_fraction: 0.2}\n"
    )
    ring, out = tmp_path / "own.key", tmp_path / "out"
    program("encrypt", own, out, "--config", experiment, "--key", ring, "--client", 1)
    keys = of_ring(open_ring(ring))
    sizes = {path.name: len(open_shard(path, keys)) for path in out.iterdir()}
    assert sizes == {
        "client-00001.safetensors": 17,
        "client-00001-test.safetensors": 9,
        "client-00001-validation.safetensors": 4,
    }
    metadata = shard_metadata(out / "client-00001.safetensors", keys)
    assert metadata["seed"] == "7"
    assert metadata["steps"] == ",".join(SCHEMES["EtC"])
    assert metadata["party"] == "client 1"
    assert "data" not in metadata


def test_common_test_images_belong_to_the_server(tmp_path: Path, own: Path) -> None:
    ring, out, key = tmp_path / "own.key", tmp_path / "out", tmp_path / "handed" / "mine.key"
    words = ("--key", ring, *MODEL, "--common-test", "--storage-key", key, "--client", 2)
    program("encrypt", own, out, *words)
    assert sorted(path.name for path in out.iterdir()) == [
        "client-00002.safetensors",
        "test.safetensors",
    ]
    assert len(open_shard(out / "client-00002.safetensors", open_party_keys(key))) == 12
    server = open_party_keys(key.parent / "test.key")
    assert shard_metadata(out / "test.safetensors", server)["party"] == "test"
    with pytest.raises(Exception, match="sealed under storage key"):
        open_shard(out / "client-00002.safetensors", server)
    program("keys", "storage", out, tmp_path / "again", "--key", ring)
    again = tmp_path / "again" / "client-00002.key"
    assert again.read_bytes() == key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_key_rings_are_made_shown_and_changed(
    tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring, out = tmp_path / "keys" / "own.key", tmp_path / "out"
    program("keys", "new", ring)
    first = key_id(open_ring(ring).current)
    assert stat.S_IMODE(ring.stat().st_mode) == 0o600
    with pytest.raises(SystemExit):
        program("keys", "new", ring)
    program("encrypt", own, out, "--key", ring, *MODEL)
    program("keys", "rotate", ring, out)
    secrets = open_ring(ring).secrets
    assert len(secrets) == 2
    capsys.readouterr()
    program("keys", "show", ring)
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()] == [first, key_id(secrets[1])]
    assert not any(secret.hex()[:16] in told for secret in secrets)
    keys = of_ring(open_ring(ring))
    for shard in out.iterdir():
        assert shard_metadata(shard, keys)["key_id"] == key_id(secrets[1])
    program("decrypt", out / "client-00000.safetensors", tmp_path / "again", "--key", ring)
    plain = set(plain_bytes(own / "train"))
    assert {p.tobytes() for p in map(_pixels, (tmp_path / "again").rglob("*.png"))} == plain


def _pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path)).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "expected the configuration of the experiment"),
        (("--image-size", 16), "expected the configuration of the experiment"),
        ((*MODEL, "--client", -1), "--client -1"),
        ((*MODEL, "--scheme", "ETC"), "did you mean 'EtC'"),
        ((*MODEL, "--test-fraction", 0.2), "has a split for testing, test"),
        ((*MODEL, "--copies", 2), "data.copies 2"),
        ((*MODEL, "--set", "data.feature_skew=0.5"), "data.feature_skew 0.5"),
        ((*MODEL, "--set", "encryption.block_size=5"), "encryption.block_size 5"),
        ((*MODEL, "--storage-key", "k", "--set", "encryption.at_rest=none"), "--storage-key"),
        ((*MODEL, "--classes", "nowhere.json"), "classes nowhere.json cannot be read"),
        ((*MODEL, "--colour", "red"), "unrecognized arguments: --colour"),
    ],
)
def test_mistakes_are_told_in_one_line_and_leave_no_file(
    tmp_path: Path,
    own: Path,
    words: tuple[object, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        program("encrypt", own, tmp_path / "out", "--key", tmp_path / "own.key", *words)
    assert ended.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("fl-vitlora: ")
    assert told in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "own.key").exists()


def test_the_names_of_classes_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    """Somebody else may have written the shard."""
    ring, out = tmp_path / "own.key", tmp_path / "a" / "b"
    program("keys", "new", ring)
    names = ("../out", "..", "/tmp/x", "", "a/b", "A_b", "nul\0")
    cipher = Cipher(steps=("pixel_shuffling",), block_size=4, image_shape=(3, 8, 8))
    holder = KeyHolder(cipher=cipher, secret=open_ring(ring).current)
    images = torch.zeros(len(names), 3, 8, 8, dtype=torch.uint8)
    shard = Shard(images=holder.encrypt(images, "client 0"), labels=torch.arange(len(names)))
    described = {**describe(holder), "party": "client 0", "part": "train"}
    described["class_names"] = json.dumps(names)
    write_shard(tmp_path / "client-00000.safetensors", shard, described)
    program("decrypt", tmp_path / "client-00000.safetensors", out, "--key", ring)
    made = [path.relative_to(out) for path in tmp_path.rglob("*.png")]
    assert len(made) == len({str(path.parent).lower() for path in made}) == len(names)
    assert all(len(path.parts) == 2 and ".." not in path.parts for path in made)
