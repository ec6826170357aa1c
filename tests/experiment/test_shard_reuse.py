"""A start with kept shards ends with the same shards as a start without them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fl_vitlora.config import Config, DataConfig, EncryptionConfig, load
from fl_vitlora.data import owner
from fl_vitlora.data.identity import SETTLED, of_folder
from fl_vitlora.data.shard_recipe import KEEPING
from fl_vitlora.data.shards import read_shard
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.owner_keys import hand_out_keys, rotate_key
from fl_vitlora.experiment.preparation import prepare_images, prepare_storage, storage_keys
from fl_vitlora.experiment.shard_reuse import KEPT, take_or_write_shards
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.storage.files import write_atomically
from tests.waiting import WATCHDOG

BASE: dict[str, Any] = {
    "clients": 2,
    "data.layout": "classes",
    "data.test_fraction": 0.25,
    "data.limit": 40,
    "data.pixel_range": [0, 65535],
}
# A change of each setting of data.* and encryption.*; some cannot be used and are refused.
CHANGES: dict[str, Any] = {
    "data.name": None,  # a copy of the folder, which only the test can make
    "data.config": "other",
    "data.revision": "main",
    "data.train_split": "cat",
    "data.test_split": "none",
    "data.validation_split": "cat",
    "data.layout": "auto",
    "data.image_column": "picture",
    "data.label_column": "kind",
    "data.client_column": "ward",
    "data.fit": "pad",
    "data.background": [0, 0, 0],
    "data.pixel_range": [0, 40000],
    "data.partition": "quantity",
    "data.alpha": 0.3,
    "data.classes_per_client": 1,
    "data.shards_per_client": 3,
    "data.min_samples": 1,
    "data.feature_skew": 0.4,
    "data.copies": {"data.copies": 2, "data.augment": ["crop"]},
    "data.augment": {"data.copies": 2, "data.augment": ["flip"]},
    "data.test_fraction": 0.3,
    "data.validation_fraction": 0.3,
    "data.limit": 36,
    "encryption.steps": ["pixel_shuffling"],
    "encryption.scope": "image",
    "encryption.block_size": 8,
    "encryption.fixed_blocks": 3,
    "encryption.fixed_entries": 5,
    "encryption.adapt": True,
    "encryption.allow_meaningless": True,
    "encryption.key_file": None,  # another ring
    "encryption.at_rest": "none",
    "seed": 3,
    "clients": 3,
    "steps and rest": {"encryption.steps": [], "encryption.at_rest": "none"},
    "steps": {"encryption.steps": []},
    "rounds": 7,
    "training.batch_size": 5,
}
NO_BYTES = {  # settings that change no byte, and no recipe
    *("encryption.adapt", "encryption.allow_meaningless", "rounds", "training.batch_size"),
}
REFUSED = {  # not for folders of classes
    *("data.config", "data.revision", "data.train_split", "data.client_column"),
    "data.validation_split",
}
NO_SOURCE = (  # no image is read from a source: a program hands them in, or shards exist already
    *("digest", "shards", "storage_keys"),
)
Content = dict[str, tuple[torch.Tensor, torch.Tensor, dict[str, str]]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images that are not square, some transparent and some of 16 bits.

    No test changes these images; `own_copy` is for those that do.
    """
    numbers, folder = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(30):
            path = folder / name / f"{number}.png"
            if number % 5:
                image = Image.fromarray(numbers.integers(0, 256, (8, 12, 4), np.uint8))
            else:
                image = Image.fromarray(numbers.integers(0, 65536, (8, 12)).astype(np.uint16))
            image.save(path)
    settle()
    return folder


def settle() -> None:
    """Waits until files that were just written count as settled."""
    time.sleep(1.1 * SETTLED)


def own_copy(images: Path, folder: Path) -> Path:
    shutil.copytree(images, folder)
    settle()
    return folder


def configured(tmp_path: Path, images: Path, **changed: Any) -> Config:
    keys = {"encryption.key_file": str(tmp_path / "owner.key")}
    return load(None, {**BASE, **keys, "data.name": str(images), **changed})


def ignore(phase: str) -> None:
    """Does nothing with the name of a phase."""


def start(
    config: Config,
    run: Path,
    size: int = 16,
    announce: Callable[[str], None] = ignore,
    *,
    again: bool = False,
) -> tuple[str, Content]:
    """Starts an experiment up to its shards; returns what the user is told, and the shards."""
    secret = open_or_create_ring(Path(config.encryption.key_file)).current
    holder = owner.key_holder(config, patch_size=4, image_shape=(3, size, size), secret=secret)
    images, storage = prepare_images(config), prepare_storage(config)
    written = dataclasses.replace(config, out=str(run))
    folder = RunFolder.reopen(run) if again else RunFolder.create(written)
    told = take_or_write_shards(
        config, images, holder, folder=folder, storage=storage, announce=announce
    )
    folder.release()
    return told, content_of(run, config)


def content_of(run: Path, config: Config) -> Content:
    content = {}
    for path in owner.find_shards(run):
        shard, metadata = read_shard(path, storage_keys(config))
        content[path.name] = shard.images, shard.labels, metadata
    return content


def same(one: Content, other: Content) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name][0], other[name][0])
        and torch.equal(one[name][1], other[name][1])
        and one[name][2] == other[name][2]
        for name in one
    )


def is_reused(told: str) -> bool:
    assert ("reused from" in told) != ("kept in" in told)
    return "reused from" in told


def test_every_setting_of_images_and_keys_is_changed_below() -> None:
    for group, kind in (("data", DataConfig), ("encryption", EncryptionConfig)):
        for item in dataclasses.fields(kind):
            named = item.name in (*KEEPING, *NO_SOURCE)
            assert named or f"{group}.{item.name}" in CHANGES


@pytest.mark.parametrize("setting", CHANGES)
def test_a_start_beside_kept_shards_ends_with_the_shards_of_a_start_without(
    images: Path, tmp_path: Path, setting: str
) -> None:
    """Kept shards of another setting are never taken, unless they are the same."""
    config = configured(tmp_path, images)
    told, _ = start(config, tmp_path / "first")
    assert not is_reused(told)
    value = CHANGES[setting]
    if setting == "data.name":
        value = str(own_copy(images, tmp_path / "copy"))
    if setting == "encryption.key_file":
        value = str(tmp_path / "other.key")
    changes = value if isinstance(value, dict) else {setting: value}
    changed = configured(tmp_path, images, **changes)
    try:
        _, expected = start(
            configured(tmp_path, images, **changes, **{"data.keep_shards": "none"}),
            tmp_path / "apart",
        )
    except UserError:
        assert setting in REFUSED
        return
    told, found = start(changed, tmp_path / "second")
    assert same(found, expected)
    assert is_reused(told) == (setting in NO_BYTES)


@pytest.mark.parametrize(
    "changed",
    [
        {"data.augment": ["flip"]},
        {"data.augment": ["flip", "crop"]},
        {"data.copies": 3},
        {"data.feature_skew": 0.4},
        {"data.feature_skew": 0.41},
        {"seed": 3},
    ],
)
def test_other_copies_and_sensors_are_another_recipe(
    images: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    base: dict[str, Any] = {
        "data.copies": 2,
        "data.augment": ["crop"],
        "data.feature_skew": 0.39,
    }
    _, first = start(configured(tmp_path, images, **base), tmp_path / "first")
    told, again = start(configured(tmp_path, images, **base), tmp_path / "again")
    assert is_reused(told)
    assert same(first, again)
    told, other = start(configured(tmp_path, images, **{**base, **changed}), tmp_path / "other")
    assert not is_reused(told)
    assert not same(first, other)


def test_the_same_experiment_reuses_its_shards_and_says_so(images: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, images)
    told, first = start(config, tmp_path / "first")
    assert told == (
        f"shards: kept in {tmp_path / KEPT} for the next run (data.keep_shards=none turns this off)"
    )
    told, second = start(config, tmp_path / "second")
    assert told.startswith("shards: 3 files (")
    assert f"reused from {tmp_path / KEPT}, so no image was read" in told
    assert same(first, second)
    _, apart = start(
        configured(tmp_path, images, **{"data.keep_shards": "none"}), tmp_path / "apart"
    )
    assert same(first, apart)


def test_kept_shards_replace_those_of_an_interrupted_start(images: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, images)
    _, first = start(config, tmp_path / "first")
    start(config, tmp_path / "second")
    one, two = sorted((tmp_path / "second" / "shards").glob("client-*"))
    one.unlink()
    write_atomically(two, b"half of a shard")
    (tmp_path / "second" / "shards" / f".{two.name}.1.tmp").write_bytes(b"half of a shard")
    told, second = start(config, tmp_path / "second", again=True)
    assert is_reused(told)
    assert same(first, second)
    assert same(first, content_of(tmp_path / "first", config))


def test_another_size_of_images_makes_other_shards(images: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, images)
    start(config, tmp_path / "first")
    told, found = start(config, tmp_path / "second", size=20)
    assert not is_reused(told)
    assert {shard[0].shape[2:] for shard in found.values()} == {(20, 20)}


def change_a_pixel(path: Path) -> None:
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def change_behind_the_time(path: Path) -> None:
    """Changes a byte and restores the time of the change, as some tools do."""
    status, content = path.stat(), bytearray(path.read_bytes())
    time.sleep(0.02)  # the file system's clock goes in steps
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.parametrize(
    "change", [change_a_pixel, change_behind_the_time, Path.touch, Path.unlink]
)
def test_a_changed_file_makes_new_shards(images: Path, tmp_path: Path, change: Any) -> None:
    copy = own_copy(images, tmp_path / "copy")
    config = configured(tmp_path, copy)
    start(config, tmp_path / "first")
    change(copy / "dog" / "7.png")
    settle()
    told, found = start(config, tmp_path / "second")
    assert not is_reused(told)
    _, apart = start(configured(tmp_path, copy, **{"data.keep_shards": "none"}), tmp_path / "apart")
    assert same(found, apart)


def test_images_that_change_while_they_are_read_are_not_kept(images: Path, tmp_path: Path) -> None:
    copy = own_copy(images, tmp_path / "copy")

    def touch(phase: str) -> None:
        if phase == "encrypting shards":
            (copy / "dog" / "7.png").touch()

    told, _ = start(configured(tmp_path, copy), tmp_path / "first", announce=touch)
    assert not told
    assert not (tmp_path / KEPT).exists()


def test_images_that_have_only_just_changed_are_not_kept(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further change could get the same time. Here, "just" is within minutes."""
    copy = own_copy(images, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(of_folder, "__defaults__", (WATCHDOG,))
        told, _ = start(configured(tmp_path, copy), tmp_path / "first")
    assert not told
    assert not (tmp_path / KEPT).exists()
    told, _ = start(configured(tmp_path, copy), tmp_path / "second")
    assert not is_reused(told)
    assert (tmp_path / KEPT).exists()


def test_damaged_shards_are_made_anew(images: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, images)
    _, first = start(config, tmp_path / "first")
    (path,) = tmp_path.glob(f"{KEPT}/*/test.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()  # the run's shard, another name of the same file, stays undamaged
    path.write_bytes(content)
    told, second = start(config, tmp_path / "second")
    assert not is_reused(told)
    assert same(first, second)
    assert is_reused(start(config, tmp_path / "third")[0])


def test_nothing_is_kept_of_digits_or_under_a_passphrase(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FL_VITLORA_PASSPHRASE", "correct horse")
    digits: dict[str, Any] = {
        "data.name": "digits",
        "data.layout": "auto",
        "data.pixel_range": [],
    }
    for number, changed in enumerate((digits, {"encryption.at_rest": "passphrase"})):
        told, _ = start(configured(tmp_path, images, **changed), tmp_path / f"run {number}")
        assert not told
        assert not (tmp_path / KEPT).exists()
    chosen = {"data.keep_shards": str(tmp_path / "chosen")}
    assert not is_reused(
        start(configured(tmp_path, images, **digits, **chosen), tmp_path / "first")[0]
    )
    assert is_reused(
        start(configured(tmp_path, images, **digits, **chosen), tmp_path / "second")[0]
    )


def test_shards_beyond_the_limit_are_not_kept(images: Path, tmp_path: Path) -> None:
    told, _ = start(
        configured(tmp_path, images, **{"data.keep_at_most": "10 kB"}), tmp_path / "first"
    )
    assert "not kept for the next run, because they have more than 10.0 kB" in told


def test_a_store_that_cannot_be_written_does_not_stop_the_run(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    config = configured(tmp_path, images, **{"data.keep_shards": str(tmp_path / "file" / "kept")})
    told, _ = start(config, tmp_path / "first")
    assert "not kept for the next run, because" in told


def test_a_rotated_key_leaves_other_runs_and_forgets_kept_shards(
    images: Path, tmp_path: Path
) -> None:
    config = configured(tmp_path, images)
    start(config, tmp_path / "first")
    _, second = start(config, tmp_path / "second")
    rotate_key(config, [tmp_path / "first"])
    assert same(content_of(tmp_path / "second", config), second)
    assert not list((tmp_path / KEPT).iterdir())
    assert not is_reused(start(config, tmp_path / "third")[0])
    assert is_reused(start(config, tmp_path / "fourth")[0])


def test_storage_keys_of_reused_shards_can_be_handed_out(images: Path, tmp_path: Path) -> None:
    config = configured(tmp_path, images)
    for run in ("first", "second"):
        start(config, tmp_path / run)
    files = hand_out_keys(config, [tmp_path / "second"], tmp_path / "handed")
    assert [path.name for path in files] == ["client-00000.key", "client-00001.key", "test.key"]
