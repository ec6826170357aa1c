"""What is its owner's alone is so under every umask, however it is written, and written again."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fl_vitlora.checkpoints.journal import Journal
from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.config import load
from fl_vitlora.data.shards import Shard, write_shard
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.models.reading import write_reader
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.state import State
from fl_vitlora.storage.files import (
    WriteError,
    make_folder,
    private_folder_within,
    write_atomically,
    write_parts,
)

MODEL: State = {"weight": torch.ones(2, 3)}
SHARD = Shard(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]))


@pytest.fixture(params=[0, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_everything(run: Path) -> dict[str, int]:
    """Writes all files that are their owner's alone; returns the modes of these and of folders."""
    folder = RunFolder(run)
    for name in ("model.safetensors", "best_model.safetensors"):
        folder.write_model(MODEL, name)
    write_reader(
        folder.shards / "reader.safetensors", PatchReader(weight=torch.ones(2, 3), position=None)
    )
    for name in ("client-00000.safetensors", "test.safetensors"):
        write_shard(folder.shards / name, SHARD, {"party": "test"}, durable=False)
    logbook = Logbook.begin(run)
    logbook.write(1, {"model": MODEL}, Ledger().prefix(), {0: MODEL}, lambda state: state)
    open_or_create_ring(run / "keys" / "owner.key").rotated()
    private = [folder.shards, run / "checkpoint", run / "keys"]
    files = [*run.glob("*.safetensors"), *(path for place in private for path in place.iterdir())]
    return {str(path.relative_to(run)): mode(path) for path in (*files, *private)}


def test_what_is_private_is_private_under_every_umask(tmp_path: Path, umask: int) -> None:
    run = RunFolder.create(load(None, {"out": str(tmp_path / "above" / "run")})).path
    modes = write_everything(run)
    assert len(modes) == 12
    folders = {"shards", "checkpoint", "keys"}
    wanted = {name: 0o700 if name in folders else 0o600 for name in modes}
    assert modes == wanted, oct(umask)


def test_what_others_could_read_they_cannot_when_it_is_written_again(tmp_path: Path) -> None:
    folder = RunFolder.create(load(None, {"out": str(tmp_path / "run")}))
    write_everything(folder.path)
    for path in folder.path.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    folder.release()
    RunFolder.reopen(folder.path).release()
    (folder.path / "keys" / "owner.key").chmod(0o600)  # else it is refused
    (folder.path / "keys").chmod(0o700)  # the owner's, who may keep other things there
    modes = write_everything(folder.path)
    assert not {name: oct(m) for name, m in modes.items() if m & 0o077}


def test_a_half_written_file_is_private_too(tmp_path: Path, umask: int) -> None:
    """The permissions are set before anything is in the file, also of one that lay there before."""
    path = tmp_path / "file"
    half = tmp_path / f".file.{os.getpid()}.tmp"
    half.touch()
    half.chmod(0o666)
    seen = []

    def parts() -> Iterator[bytes]:
        seen.append(mode(half))
        yield b"secret"

    write_parts(path, parts(), mode=0o600)
    assert seen == [0o600]
    assert mode(path) == 0o600, oct(umask)


def test_what_is_public_follows_the_umask_but_stays_the_owners(tmp_path: Path, umask: int) -> None:
    make_folder(tmp_path / "one" / "two")
    Journal(tmp_path / "one" / "rounds.jsonl").append({"round": 1})
    write_atomically(tmp_path / "one" / "two" / "result.json", "{}")
    for path in (tmp_path / "one" / "rounds.jsonl", tmp_path / "one" / "two" / "result.json"):
        assert mode(path) == 0o600 | (0o666 & ~umask)
    for path in (tmp_path / "one", tmp_path / "one" / "two"):
        assert mode(path) == 0o700 | (0o777 & ~umask)


def test_a_folder_for_files_of_any_permissions_is_private_and_goes_away(
    tmp_path: Path, umask: int
) -> None:
    with private_folder_within(tmp_path) as place:
        assert mode(place) == 0o700, oct(umask)
        (place / "file").write_bytes(b"")
        (place / "file").replace(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with pytest.raises(WriteError, match="nowhere cannot be written"):
        private_folder_within(tmp_path / "nowhere").__enter__()
