"""A journal is good up to its mark, or says that it is not."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fl_vitlora.checkpoints.journal import Journal, Mark
from fl_vitlora.storage.checksummed import DamagedFileError
from fl_vitlora.storage.files import WriteError


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    journal = Journal(path)
    journal.append({"round": 1})
    journal.append({"round": 2}, [3, "ü"])
    assert [json.loads(line) for line in path.read_text().splitlines()] == journal.lines()
    assert journal.lines() == [{"round": 1}, {"round": 2}, [3, "ü"]]


def test_what_came_after_the_mark_is_cut_off_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append(1, 2)
    mark = journal.mark()
    journal.append(3)
    with path.open("ab") as file:
        file.write(b"[half a li")
    again = Journal(path, mark)
    again.append(4)
    assert again.lines() == [1, 2, 4]
    assert Journal(path, again.mark()).lines() == [1, 2, 4]


def test_a_new_journal_forgets_the_old_one(tmp_path: Path) -> None:
    Journal(tmp_path / "journal").append("old")
    assert Journal(tmp_path / "journal").lines() == []


def test_a_disk_that_does_not_take_it_after_all_is_told_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    journal = Journal(tmp_path / "journal")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="journal cannot be written: No space left"):
        journal.mark()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_one_flipped_bit_before_the_mark_is_told(place: int, bit: int, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.append({"round": 1}, {"round": 2})
    mark = journal.mark()
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="it differs from what the checkpoint recorded"):
        Journal(path, mark)
    assert path.read_bytes() == data  # which somebody may want to look at


@pytest.mark.parametrize("content", [None, b"", b'{"round": 1}\n'])
def test_a_journal_that_is_shorter_than_its_mark_is_told(
    content: bytes | None, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal")
    journal.append({"round": 1}, {"round": 2})
    mark = journal.mark()
    (tmp_path / "journal").unlink()
    if content is not None:
        (tmp_path / "journal").write_bytes(content)
    with pytest.raises(DamagedFileError):
        Journal(tmp_path / "journal", mark)


def test_the_mark_of_a_new_journal_is_the_first(tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal").mark() == Mark()
