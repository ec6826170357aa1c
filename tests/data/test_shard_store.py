"""The store gives shards back exactly as they were kept, or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fl_vitlora.data.shard_store import LIST, ShardStore, name_of
from fl_vitlora.storage.files import WriteError, write_atomically

KEY, OTHER = bytes(32), bytes(range(32))
FILES = {"client-00000.safetensors": b"one" * 100, "test.safetensors": b"two"}


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(folder=tmp_path / "kept", most=10**6)


def run_with_shards(folder: Path, files: dict[str, bytes] = FILES) -> list[Path]:
    """Writes the shards of a run, and a file that is not a shard."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "reader.safetensors").write_bytes(b"no shard")
    return [folder / name for name in files]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def take(store: ShardStore, folder: Path, recipe: str = "a", key: bytes = KEY) -> bool:
    """Takes shards into a new folder; a refusal leaves the folder empty."""
    folder.mkdir()
    taken = store.take(recipe, key, folder)
    assert content_of(folder) == (FILES if taken else {})
    if taken:
        assert taken.keys() == FILES.keys()
    return taken is not None


def keep(store: ShardStore, tmp_path: Path, recipe: str = "a") -> Path:
    assert store.keep(recipe, KEY, run_with_shards(tmp_path / f"run {recipe}"), {"secret 1"})
    return store.folder / name_of(recipe, KEY)


def test_kept_shards_come_back_and_only_for_their_recipe_and_key(
    store: ShardStore, tmp_path: Path
) -> None:
    assert not take(store, tmp_path / "before")
    keep(store, tmp_path)
    assert take(store, tmp_path / "second")
    assert not take(store, tmp_path / "another recipe", recipe="b")
    assert not take(store, tmp_path / "another key", key=OTHER)
    assert take(store, tmp_path / "third")


def test_only_the_user_can_read_the_store_and_names_tell_nothing(
    store: ShardStore, tmp_path: Path
) -> None:
    entry = keep(store, tmp_path, recipe="labels of all images")
    for path in (store.folder, entry):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((entry / LIST).stat().st_mode) == 0o600
    assert entry.name != name_of("labels of all images", OTHER)
    assert b"labels" not in (entry / LIST).read_bytes()


def change_a_bit(entry: Path) -> None:
    path = entry / "client-00000.safetensors"
    write_atomically(path, b"onE" + path.read_bytes()[3:])


def swap_two(entry: Path) -> None:
    one, two = (entry / name for name in FILES)
    one.rename(entry / "between")
    two.rename(one)
    (entry / "between").rename(two)


def list_another_content(entry: Path) -> None:
    """A thief changes a shard and its digest in the list, but cannot make the HMAC."""
    import hashlib

    path = entry / "test.safetensors"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    write_atomically(path, b"TWO")
    text = (entry / LIST).read_text().replace(old, hashlib.sha256(b"TWO").hexdigest())
    write_atomically(entry / LIST, text)


def link_to_another_file(entry: Path) -> None:
    path = entry / "test.safetensors"
    (entry.parent / "elsewhere").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(entry.parent / "elsewhere")


DAMAGES: list[Callable[[Path], object]] = [
    change_a_bit,
    swap_two,
    list_another_content,
    link_to_another_file,
    lambda entry: os.truncate(entry / LIST, 10),
    lambda entry: write_atomically(entry / "test.safetensors", b"tw"),
    lambda entry: (entry / "test.safetensors").unlink(),
    lambda entry: (entry / LIST).unlink(),
    lambda entry: (entry / LIST).write_bytes(b"\xff\xfe"),
    lambda entry: (entry / LIST).write_text("[]\n[]\n"),
]


@pytest.mark.parametrize("damage", range(len(DAMAGES)))
def test_a_damaged_entry_is_refused_and_made_anew(
    store: ShardStore, tmp_path: Path, damage: int
) -> None:
    entry = keep(store, tmp_path)
    DAMAGES[damage](entry)
    assert not take(store, tmp_path / "second")
    assert not entry.exists()
    assert content_of(tmp_path / "run a").items() >= FILES.items()
    assert store.keep("a", KEY, [tmp_path / "run a" / name for name in FILES], ())
    assert take(store, tmp_path / "third")


def test_an_entry_under_another_entrys_name_is_refused(store: ShardStore, tmp_path: Path) -> None:
    keep(store, tmp_path).rename(store.folder / name_of("b", KEY))
    assert not take(store, tmp_path / "second", recipe="b")


def test_a_shard_that_is_written_anew_in_one_run_stays_as_it_was_elsewhere(
    store: ShardStore, tmp_path: Path
) -> None:
    """The program always replaces a file, so hard links share no later content."""
    entry = keep(store, tmp_path)
    assert take(store, tmp_path / "second")
    for place in (tmp_path / "run a", tmp_path / "second"):
        write_atomically(place / "test.safetensors", b"under a new key")
    assert (entry / "test.safetensors").read_bytes() == FILES["test.safetensors"]
    assert take(store, tmp_path / "third")


def test_without_hard_links_the_shards_are_copied(
    store: ShardStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: object, **options: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)  # as between two file systems
    entry = keep(store, tmp_path)
    assert take(store, tmp_path / "second")
    for place in (entry, tmp_path / "second"):
        status = (place / "test.safetensors").stat()
        assert (status.st_nlink, stat.S_IMODE(status.st_mode)) == (1, 0o600)


def test_the_shards_that_were_used_least_recently_are_removed_first(tmp_path: Path) -> None:
    store = ShardStore(folder=tmp_path / "kept", most=1500)  # an entry has some 700 bytes
    for number, recipe in enumerate("ab"):
        os.utime(keep(store, tmp_path, recipe), (number, number))
    assert take(store, tmp_path / "used", recipe="a")
    keep(store, tmp_path, "c")
    assert take(store, tmp_path / "a", recipe="a")
    assert not take(store, tmp_path / "b", recipe="b")
    assert take(store, tmp_path / "c", recipe="c")
    assert not list(store.folder.glob(".*"))


def test_shards_larger_than_the_store_are_not_kept(tmp_path: Path) -> None:
    store = ShardStore(folder=tmp_path / "kept", most=100)
    assert not store.keep("a", KEY, run_with_shards(tmp_path / "run"), ())
    assert not store.folder.exists()


def test_an_entry_that_was_never_finished_is_removed_after_a_day(
    store: ShardStore, tmp_path: Path
) -> None:
    keep(store, tmp_path)
    for name, age in (("old", 0), ("new", None)):
        (store.folder / f".{name}.tmp").mkdir()
        if age is not None:
            os.utime(store.folder / f".{name}.tmp", (age, age))
    keep(store, tmp_path, "b")
    assert [path.name for path in store.folder.glob(".*")] == [".new.tmp"]


def test_entries_under_an_old_secret_can_be_forgotten(store: ShardStore, tmp_path: Path) -> None:
    keep(store, tmp_path)
    assert store.forget({"secret 0"}) == 0
    assert take(store, tmp_path / "second")
    assert store.forget({"secret 0", "secret 1"}) == 1
    assert not take(store, tmp_path / "third")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_store_of_another_user_is_not_used(store: ShardStore, tmp_path: Path) -> None:
    keep(store, tmp_path)
    os.chown(store.folder, 12345, 12345)
    assert not take(store, tmp_path / "second")


def test_a_store_that_others_can_write_is_not_used(store: ShardStore, tmp_path: Path) -> None:
    keep(store, tmp_path)
    store.folder.chmod(0o777)
    assert not take(store, tmp_path / "second")


def test_a_store_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = ShardStore(folder=tmp_path / "file" / "kept", most=10**6)
    assert not take(store, tmp_path / "second")
    with pytest.raises(WriteError, match="cannot be written"):
        store.keep("a", KEY, run_with_shards(tmp_path / "run"), ())


def test_programs_that_keep_take_and_remove_at_once_never_get_wrong_shards(
    store: ShardStore, tmp_path: Path
) -> None:
    def work(number: int) -> bool:
        own = tmp_path / f"own {number}"
        own.mkdir()
        paths = run_with_shards(own / "run")
        for turn in range(10):
            if (number + turn) % 4 == 0:
                store.forget({"secret 1"})
            elif (number + turn) % 4 == 1:
                store.keep("a", KEY, paths, {"secret 1"})
            else:
                take(store, own / f"taken {turn}")
        return content_of(own / "run").items() >= FILES.items()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    assert not list(store.folder.glob(".*"))
