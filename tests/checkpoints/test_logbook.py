"""A logbook gives back the newest state that is whole, and keeps no more than it needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_vitlora.checkpoints.logbook import Logbook, lacks_checkpoints, remove
from fl_vitlora.communication.ledger import Entry, Ledger
from fl_vitlora.storage.checksummed import DamagedFileError, write_sealed


class Remembers:
    """What a client remembers, as an object that is replaced when it changes."""

    def __init__(self, value: int) -> None:
        self.value = value


def tree_of(one: Remembers) -> dict[str, Any]:
    return {"value": one.value} if one.value else {}


def entry(server_round: int, client: int) -> Entry:
    return Entry(
        round=server_round, client=client, direction="uplink", groups={"head": 3}, overhead=5
    )


class Played:
    """A run of three clients, of which one changes in each round."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.book = Logbook.begin(place)
        self.clients = {client: Remembers(client) for client in range(3)}
        self.ledger = Ledger()

    def round(self, number: int) -> None:
        self.book.note_round({"round": number})
        self.ledger.record(entry(number, 1))
        self.clients[1] = Remembers(10 * number)
        state = {"weights": torch.full((3,), float(number)), "known": {2: [1, 2]}}
        self.book.write(number, state, self.ledger.prefix(), dict(self.clients), tree_of)

    @property
    def files(self) -> set[str]:
        return {path.name for path in (self.place / "checkpoint").iterdir()}


@pytest.fixture
def played(tmp_path: Path) -> Played:
    run = Played(tmp_path)
    for number in (1, 2, 3):
        run.round(number)
    return run


def test_there_is_nothing_to_take_up_before_the_first_round(tmp_path: Path) -> None:
    assert Logbook.take_up(tmp_path) is None
    Logbook.begin(tmp_path)
    assert Logbook.take_up(tmp_path) is None


def test_the_newest_state_is_taken_up_with_all_that_belongs_to_it(played: Played) -> None:
    found = Logbook.take_up(played.place)
    assert found is not None
    _, checkpoint = found
    assert checkpoint.round == 3
    assert checkpoint.server["weights"].tolist() == [3.0] * 3
    assert checkpoint.server["known"] == {2: [1, 2]}
    assert checkpoint.clients == {1: {"value": 30}, 2: {"value": 2}}  # 0 remembers nothing
    assert list(checkpoint.ledger) == list(played.ledger)
    assert checkpoint.lines == [{"round": 1}, {"round": 2}, {"round": 3}]


def test_two_states_are_kept_and_what_they_need_of_older_ones(played: Played) -> None:
    """Client 2 has not changed since the first round."""
    numbers = {"clients": (1, 2, 3), "round": (2, 3)}
    expected = {f"{name}-{n:06d}.safetensors" for name, rounds in numbers.items() for n in rounds}
    assert played.files == expected | {"ledger.jsonl"}


@pytest.mark.parametrize("name", ["round-000003.safetensors", "clients-000003.safetensors"])
def test_the_state_before_is_taken_up_where_the_newest_is_damaged(
    name: str, played: Played
) -> None:
    damaged = played.place / "checkpoint" / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    found = Logbook.take_up(played.place)
    assert found is not None
    book, checkpoint = found
    assert (checkpoint.round, checkpoint.clients[1]) == (2, {"value": 20})
    assert checkpoint.lines == [{"round": 1}, {"round": 2}]
    book.note_round({"round": 3})
    checkpoint.ledger.record(entry(3, 1))
    book.write(3, {}, checkpoint.ledger.prefix(), {}, tree_of)
    again = Logbook.take_up(played.place)
    assert again is not None
    assert (again[1].round, len(again[1].ledger)) == (3, 3)


@pytest.mark.parametrize("name", ["clients-000001.safetensors", "ledger.jsonl"])
def test_what_all_states_need_is_told_by_its_name_when_it_is_damaged(
    name: str, played: Played
) -> None:
    (played.place / "checkpoint" / name).write_bytes(b"")
    with pytest.raises(DamagedFileError, match=name):
        Logbook.take_up(played.place)


def test_the_two_newest_are_kept_after_going_on_too(played: Played) -> None:
    found = Logbook.take_up(played.place)
    assert found is not None
    assert {"round-000002.safetensors", "round-000003.safetensors"} <= played.files
    found[0].write(4, {}, found[1].ledger.prefix(), {}, tree_of)
    rounds = {name for name in played.files if name.startswith("round")}
    assert rounds == {"round-000003.safetensors", "round-000004.safetensors"}


def test_a_file_under_the_name_of_another_round_is_no_state_of_it(played: Played) -> None:
    folder = played.place / "checkpoint"
    shutil.copy(folder / "round-000002.safetensors", folder / "round-000004.safetensors")
    shutil.copy(folder / "round-000002.safetensors", folder / "round-000003-copy.safetensors")
    found = Logbook.take_up(played.place)
    assert found is not None
    assert found[1].round == 3


def test_a_state_of_another_layout_is_passed_over_and_told_if_there_is_no_other(
    played: Played,
) -> None:
    newest, older = (played.place / "checkpoint" / f"round-{n:06d}.safetensors" for n in (3, 2))
    write_sealed(newest, {}, {"content": '{"map": []}', "round": "3"})
    found = Logbook.take_up(played.place)
    assert found is not None
    assert found[1].round == 2
    older.unlink()
    with pytest.raises(
        DamagedFileError, match=f"{newest} is not a checkpoint that this version can read"
    ):
        Logbook.take_up(played.place)


def test_rounds_that_are_told_and_lost_are_not_those_before_the_first_state(tmp_path: Path) -> None:
    assert not lacks_checkpoints(tmp_path, 2)
    run = Played(tmp_path)
    for number in (1, 2):
        run.book.note_round({"round": number})
    assert not lacks_checkpoints(tmp_path, 2)
    assert lacks_checkpoints(tmp_path, 0)
    run.round(3)
    assert not lacks_checkpoints(tmp_path, 2)
    remove(tmp_path)
    assert lacks_checkpoints(tmp_path, 2)


def test_a_run_at_its_end_keeps_its_rounds_alone(played: Played) -> None:
    played.book.close()
    assert [path.name for path in played.place.iterdir()] == ["rounds.jsonl"]
