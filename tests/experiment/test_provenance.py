"""A change in any file of the package changes the digest of its code."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import fl_vitlora
from fl_vitlora.experiment.provenance import code_digest, versions_and_code
from strategies.fedavg import FedAvg

PACKAGE = Path(fl_vitlora.__file__).parent
CODE = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# One file of each room, the one that lies deepest in it, and each file beside the rooms.
FILES = {
    path.parts[0]: path for path in sorted(CODE, key=lambda path: (len(path.parts), path.name))
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's code."""
    folder = tmp_path_factory.mktemp("code") / "fl_vitlora"
    shutil.copytree(PACKAGE, folder, ignore=lambda _, names: _no_code(names))
    return folder


def _no_code(names: list[str]) -> list[str]:
    return [name for name in names if "." in name and not name.endswith(".py")]


def test_what_is_recorded_is_the_digest_of_the_whole_package(copy: Path) -> None:
    assert versions_and_code(FedAvg())["fl_vitlora"] == code_digest(PACKAGE) == code_digest(copy)


def test_every_room_is_tried() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if any(path.rglob("*.py"))}
    assert rooms <= set(FILES)
    assert {"experiment", "flower", "finetuning", "strategy", "rng.py"} <= set(FILES)
    assert len(FILES["flower"].parts) > 2  # a file of a wing


@pytest.mark.parametrize("path", FILES.values(), ids=list(FILES))
def test_a_change_in_a_file_changes_the_digest(copy: Path, path: Path) -> None:
    before, code = code_digest(copy), (copy / path).read_bytes()
    (copy / path).write_bytes(code + b"\n")
    assert code_digest(copy) != before
    (copy / path).write_bytes(code)
    assert code_digest(copy) == before


@pytest.mark.parametrize("name", ["new.py", "federation/new.py", "flower/new/wing/new.py"])
def test_a_file_that_is_added_changes_the_digest(copy: Path, name: str) -> None:
    before, path = code_digest(copy), copy / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    assert code_digest(copy) != before
    path.unlink()
    assert code_digest(copy) == before


def test_a_file_that_moves_or_goes_changes_the_digest(copy: Path) -> None:
    before, path = code_digest(copy), copy / "experiment" / "provenance.py"
    path.rename(copy / "federation" / "provenance.py")
    moved = code_digest(copy)
    (copy / "federation" / "provenance.py").rename(path.with_suffix(".txt"))
    gone = code_digest(copy)
    path.with_suffix(".txt").rename(path)
    assert len({before, moved, gone}) == 3
    assert code_digest(copy) == before
