"""A disk that takes nothing more: one line says which file and why; what was good stays good."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_vitlora.config import load
from fl_vitlora.config.grid import read_grid
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.comparison import prepare_folder
from fl_vitlora.reporting import run_folder
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.storage.files import HeldError, Hold, WriteError, append, write_atomically
from tests.waiting import WATCHDOG, wait_until

resource = pytest.importorskip("resource", reason="limits of a process are POSIX's")

ROOT = Path(__file__).resolve().parents[2]

# Fails in each way in which this package writes, and tells what was said.
WRITES = """
import resource, sys, torch
from pathlib import Path
import numpy as np
from fl_vitlora.checkpoints.journal import Journal
from fl_vitlora.data.owner import find_shards
from fl_vitlora.data.reencryption import encrypt_anew
from fl_vitlora.encryption.keys import open_ring
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.models.reading import write_reader
from fl_vitlora.reporting.plots import plot_labels
from fl_vitlora.reporting.run_folder import RunFolder

run, key = Path(sys.argv[1]), sys.argv[2]
folder = RunFolder(run)
journal = Journal(run / "rounds.jsonl")
reader = PatchReader(weight=torch.zeros(99, 9), position=None)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: folder.write("result.json", "x" * 2000),
    lambda: folder.write_model({"weight": torch.zeros(1000)}),
    lambda: journal.append({"text": "x" * 2000}),
    lambda: plot_labels(folder.plots, np.ones((2, 2), dtype=np.int64), ("a", "b")),
    lambda: write_reader(folder.shards / "reader.safetensors", reader),
    lambda: encrypt_anew(find_shards(run), open_ring(Path(key)).rotated()),
    lambda: [open_ring(Path(key)).rotated() for _ in range(20)],
):
    try:
        write()
        print("nothing was said")
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk with options, which takes root."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / "disk"
        place.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("only root can mount a small disk")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> None:
    """Writes until there is no room for a byte."""
    with contextlib.suppress(OSError), (disk / "filling").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def contents(folder: Path) -> dict[str, bytes]:
    """Reads all files, hidden ones too."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_full_disk_is_named_and_the_old_files_stay(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=64k")
    write_atomically(disk / "file", "old")
    append(disk / "lines", b"x" * 4000)
    fill(disk)
    before = contents(disk)
    for name, write in (
        ("file", lambda: write_atomically(disk / "file", "n" * 5000)),
        ("lines", lambda: append(disk / "lines", b"y" * 5000)),
    ):
        with pytest.raises(WriteError, match=f"^{disk / name} cannot be written: No space left"):
            write()
        assert contents(disk) == before


def test_a_read_only_disk_is_told_before_anything_runs(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=64k,ro")
    with pytest.raises(WriteError, match=f"{disk}/file cannot be written: Read-only file system"):
        write_atomically(disk / "file", "new")
    with pytest.raises(
        UserError,
        match=f"{disk} is not a folder you can write to; choose.*--out FOLDER",
    ):
        RunFolder.create(load(None, {"out": str(disk / "run")}))
    with pytest.raises(
        UserError, match="Read-only file system; choose another folder: --out FOLDER"
    ):
        prepare_folder(disk / "grid", read_grid({"seeds": [0, 1]}, {}))
    assert contents(disk) == {}


@pytest.mark.parametrize("size", ["size=4k", "nr_inodes=4,size=1m"])
def test_a_disk_that_is_too_small_for_a_run_folder_is_told(
    mounted: Callable[[str], Path], size: str
) -> None:
    disk = mounted(size)
    with pytest.raises(UserError, match=r"run folder .* cannot be written: No space left"):
        RunFolder.create(load(None, {"out": str(disk / "run")}))
    assert not any(name.endswith(".tmp") for name in contents(disk))


@pytest.mark.parametrize("parent", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError,
        match=r"run folder .*/file is not a folder you can write to; choose another folder",
    ):
        RunFolder.create(load(None, {"out": str(tmp_path / parent / "run")}))


def test_a_name_too_long_is_told(tmp_path: Path) -> None:
    for write in (write_atomically, append):
        with pytest.raises(WriteError, match="cannot be written: File name too long"):
            write(tmp_path / ("x" * 300), b"text")
    assert contents(tmp_path) == {}


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", b"mine", new=True)
    with pytest.raises(WriteError, match="file cannot be written: File exists"):
        write_atomically(tmp_path / "file", b"yours", new=True)
    assert contents(tmp_path) == {"file": b"mine"}


def test_of_two_processes_that_find_a_run_folder_free_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(None, {"out": str(tmp_path / "run")})
    first = RunFolder.create(config)
    monkeypatch.setattr(run_folder, "check_unused", lambda path: None)  # it has looked before
    with pytest.raises(UserError, match=r"config.yaml cannot be written: File exists; choose"):
        RunFolder.create(config)
    first.release()


def test_lines_are_added_to_what_is_there(tmp_path: Path) -> None:
    for line in (b"one\n", b"zwei", b""):
        append(tmp_path / "lines", line)
    assert (tmp_path / "lines").read_bytes() == b"one\nzwei"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holds_a_file_or_a_folder_at_a_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.touch()
    else:
        path.mkdir()
    with Hold(path) as first:
        with pytest.raises(HeldError, match=str(path)):
            Hold(path)
        first.close()
        Hold(path).close()


@dataclass(frozen=True)
class Stopped:
    """A run that ended because its files could not grow any more."""

    folder: Path
    key: Path
    code: int
    output: str
    errors: list[str]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Lets no file of the program that drives a run grow from the first round on."""
    place = tmp_path_factory.mktemp("stopped")
    run, key = place / "run", place / "owner.key"
    settings = ["data.limit=60", "engine.device=cpu", f"encryption.key_file={key}"]
    process = subprocess.Popen(
        [sys.executable, "simulate.py", "--clients", "2", "--rounds", "2000", "--out", str(run)]
        + [word for setting in settings for word in ("--set", setting)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until((run / "rounds.jsonl").exists, goes_on=lambda: process.poll() is None)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, 1))
        output, errors = process.communicate(timeout=WATCHDOG)
    finally:
        process.kill()
    own = [line for line in errors.splitlines() if "ray_log_sink" not in line]  # Ray's log is full
    return Stopped(folder=run, key=key, code=process.returncode, output=output, errors=own)


@pytest.mark.slow
def test_a_disk_that_fills_during_a_run_ends_it_with_one_line(stopped: Stopped) -> None:
    rounds = stopped.folder / "rounds.jsonl"
    (error,) = stopped.errors
    assert re.fullmatch(
        rf"simulate\.py: the run failed: {stopped.folder}/\S+ cannot be written: File too large; "
        rf"python simulate\.py --resume {stopped.folder} continues the run "
        r"\(--verbose shows more\)",
        error,
    ), error
    assert stopped.code == 1
    assert "Traceback" not in stopped.output
    lines = [json.loads(line) for line in rounds.read_text().splitlines()]
    assert [line["round"] for line in lines] == list(range(1, len(lines) + 1))
    assert "result.json" not in contents(stopped.folder)
    assert not [name for name in contents(stopped.folder.parent) if name.endswith(".tmp")]


@pytest.mark.slow
def test_every_write_names_its_file_and_spoils_nothing(stopped: Stopped) -> None:
    folder, key = stopped.folder, stopped.key
    before = contents(folder)
    secrets = key.read_text()
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(folder), str(key)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=WATCHDOG,
    )
    assert done.stdout.splitlines() == [
        f"{kind} {path} cannot be written: File too large"
        for kind, path in (
            ("WriteError", folder / "result.json"),
            ("WriteError", folder / "model.safetensors"),
            ("WriteError", folder / "rounds.jsonl"),
            ("WriteError", folder / "plots" / "label_distribution.png"),
            ("WriteError", folder / "shards" / "reader.safetensors"),
            ("WriteError", folder / "shards" / "client-00000.safetensors"),
            ("UserError", f"key ring {key}"),
        )
    ]
    assert contents(folder) == before
    assert key.read_text().startswith(secrets)  # whatever was encrypted can be decrypted
    assert sorted(path.name for path in key.parent.iterdir()) == ["owner.key", "run"]
