"""A data set has the same identity as before only if it holds the same images."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from fl_vitlora.data.identity import ROWS, SETTLED, is_unchanged, of_folder, of_rows
from tests.waiting import WATCHDOG


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for name in ("cat/1.png", "cat/2.png", ".hidden/3.png", "dog/b\udcffd.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode(errors="surrogateescape"))
    return root


def found(folder: Path) -> str:
    identity = of_folder(folder, settled=0.0)
    assert identity is not None
    return identity


def test_a_folder_is_the_same_until_something_in_it_changes(folder: Path) -> None:
    before = found(folder)
    assert found(folder) == before
    assert found(Path(os.path.relpath(folder))) == before
    for change in (
        lambda: (folder / "cat" / "1.png").write_bytes(b"cat/0.png"),
        lambda: (folder / "cat" / "1.png").rename(folder / "cat" / "3.png"),
        lambda: (folder / ".hidden" / "3.png").write_bytes(b"longer than before"),
        lambda: (folder / "new.txt").write_text("new"),
        (folder / "new.txt").unlink,
        lambda: (folder / "cat" / "2.png").replace(folder / "cat" / "3.png"),
    ):
        time.sleep(0.02)  # the file system's clock goes in steps
        change()
        after = found(folder)
        assert after != before
        before = after


def test_links_count_as_what_they_lead_to_and_cycles_end(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "4.png").write_bytes(b"outside")
    (folder / "linked").symlink_to(tmp_path / "outside")
    (folder / "cat" / "cycle").symlink_to(folder)
    (folder / "broken").symlink_to(tmp_path / "nowhere")
    before = found(folder)
    assert found(folder) == before
    time.sleep(0.02)
    (tmp_path / "outside" / "4.png").write_bytes(b"changed")
    after = found(folder)
    assert after != before
    (tmp_path / "nowhere").write_bytes(b"a broken link leads somewhere again")
    assert found(folder) != after


def test_a_folder_that_was_changed_just_now_has_no_identity_yet(folder: Path) -> None:
    (folder / "cat" / "1.png").touch()
    assert of_folder(folder, settled=WATCHDOG) is None
    time.sleep(1.1 * SETTLED)
    identity = of_folder(folder)
    assert identity is not None
    assert is_unchanged(identity, folder)
    (folder / "cat" / "1.png").touch()
    assert not is_unchanged(identity, folder)


def test_a_folder_that_does_not_exist_has_no_identity(tmp_path: Path) -> None:
    assert of_folder(tmp_path / "nothing") is None


def rows_of(folder: Path, colour: int) -> Any:
    """Saves images as rows that hold their bytes, and opens them."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    images = [Image.new("L", (2, 2), colour + number) for number in range(3)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 0]}, features=features)
    rows.save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def test_rows_are_the_same_while_their_files_are(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "one", 1)
    identity = of_rows({"train": rows}, "image")
    assert identity is not None
    assert identity.startswith(ROWS)
    assert is_unchanged(identity, tmp_path)
    assert of_rows({"train": datasets.load_from_disk(str(tmp_path / "one"))}, "image") == identity
    for other in (
        {"train": rows_of(tmp_path / "two", 2)},
        {"test": rows},
        {"train": rows.select([2, 1, 0])},
        {"train": rows, "test": rows},
    ):
        assert of_rows(other, "image") not in (identity, None)


def test_rows_that_name_files_have_no_identity(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "1.png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    content = {"image": [str(tmp_path / "1.png")], "label": [0]}
    rows = datasets.Dataset.from_dict(content, features=features)
    assert of_rows({"train": rows}, "image") is None
    texts = datasets.Dataset.from_dict({"image": ["1.png"], "label": [0]})
    assert of_rows({"train": texts}, "image") is None
