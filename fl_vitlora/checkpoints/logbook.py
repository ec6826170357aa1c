"""The logbook of a run: its rounds and messages as they pass, and states from which it can go on.

    rounds.jsonl                            every round, a line each
    checkpoint/ledger.jsonl                 every message up to the last checkpoint, a line each
    checkpoint/round-000012.safetensors     the server's state after round 12, and where the rest is
    checkpoint/clients-000012.safetensors   of each client that has changed since the one before

What clients remember is theirs: the folder `checkpoint` and its files are the owner's alone,
whatever the umask. All are sealed: the safetensors files by a digest of their own, the journals by
the marks that stand in the server's state. A file is written whole under another name and renamed,
the server's last. The two newest checkpoints are kept; should the newest be damaged, the run goes
on from the one before, to the same bits.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fl_vitlora.checkpoints.journal import Journal, Mark
from fl_vitlora.communication.ledger import Entry, Ledger
from fl_vitlora.storage.checksummed import DamagedFileError, read_sealed, write_sealed
from fl_vitlora.storage.files import PRIVATE, make_private_folder
from fl_vitlora.storage.trees import Tree, build, flatten

FOLDER, LEDGER, ROUNDS = "checkpoint", "ledger.jsonl", "rounds.jsonl"
SERVER_FILE = re.compile(r"round-(\d{6,})\.safetensors")
CONTENT, ROUND = "content", "round"
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after one of its rounds.

    Attributes:
        round: Which.
        server: The server's state.
        clients: What each client remembers; those that remember nothing are left out.
        ledger: All messages so far.
        lines: Of `rounds.jsonl`.
    """

    round: int
    server: Tree
    clients: Mapping[int, Tree]
    ledger: Ledger
    lines: list[dict[str, Any]]


def lacks_checkpoints(run: Path, every: int) -> bool:
    """Tells whether a run has told rounds that nothing of it can go on from.

    That is not so before its first checkpoint, where it is begun again to the same bits.

    Args:
        run: Its folder.
        every: Rounds from one checkpoint to the next; 0 if it writes none.
    """
    told = (run / ROUNDS).read_bytes().count(b"\n") if (run / ROUNDS).exists() else 0
    return told > every and not _rounds_in(run / FOLDER)


def remove(run: Path) -> None:
    """Removes the checkpoints of a run that is at its end."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


class Logbook:
    """Writes down a run; see `begin` and `take_up`.

    Args:
        run: The run folder.
        rounds: Where the run's journal of rounds is good to; of a new one at the beginning.
        ledger: The same of its messages.
    """

    def __init__(self, run: Path, rounds: Mark | None = None, ledger: Mark | None = None) -> None:
        self._folder = run / FOLDER
        self._rounds = Journal(run / ROUNDS, rounds)
        self._ledger = Journal(self._folder / LEDGER, ledger, mode=PRIVATE)
        self._places: dict[int, int] = {}  # of a client's state, the round of the file it is in
        self._kept: dict[int, set[int]] = {}  # the same of all clients, by checkpoint
        self._written: dict[int, object] = {}  # clients' states as they are on the disk
        self._noted = 0  # messages in the journal

    @classmethod
    def begin(cls, run: Path) -> Self:
        """Begins one; what was there of an earlier one is no more."""
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        make_private_folder(run / FOLDER)
        return cls(run)

    @classmethod
    def take_up(cls, run: Path) -> tuple[Self, Checkpoint] | None:
        """Takes up a run at its newest checkpoint that is whole; what came after is cut off.

        Returns:
            The logbook and the checkpoint, or None where there is none yet.

        Raises:
            DamagedFileError: When there are some, and none is whole.
        """
        errors: list[DamagedFileError] = []
        for server_round in sorted(_rounds_in(run / FOLDER), reverse=True):
            try:
                return cls._take_up(run, server_round)
            except DamagedFileError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return None

    @classmethod
    def _take_up(cls, run: Path, server_round: int) -> tuple[Self, Checkpoint]:
        path, folder = _server_file(run / FOLDER, server_round), run / FOLDER
        try:
            state = _read(path, server_round)
            places: dict[int, int] = state["places"]
            files = {p: _read(_clients_file(folder, p), p) for p in {*places.values()}}
            book = cls(run, Mark(**state["rounds"]), Mark(**state["ledger"]))
            ledger = Ledger(_entry(line) for line in book._ledger.lines())
            book._places, book._noted = places, len(ledger)
            book._kept[server_round] = {*places.values()}
            return book, Checkpoint(
                round=server_round,
                server=state["server"],
                clients={client: files[place][client] for client, place in places.items()},
                ledger=ledger,
                lines=book._rounds.lines(),
            )
        except (AttributeError, LookupError, TypeError) as error:
            raise DamagedFileError(path, f"is no checkpoint of this version ({error!r})") from None

    def note_round(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `rounds.jsonl`."""
        self._rounds.append(line)

    def write(
        self,
        server_round: int,
        server: Tree,
        messages: Sequence[Entry],
        clients: Mapping[int, object],
        tree_of: Callable[[Any], Tree],
    ) -> None:
        """Writes a checkpoint if it is not there yet, and removes what is not needed any more.

        Args:
            server_round: After which it is.
            server: The server's state.
            messages: All so far.
            clients: What each client remembers; another object than before where it has changed.
            tree_of: Makes a tree of that; an empty one is not stored.
        """
        if server_round in self._kept:
            return
        changed = {c: state for c, state in clients.items() if self._written.get(c) is not state}
        trees = {client: tree_of(state) for client, state in changed.items()}
        if filled := {client: tree for client, tree in trees.items() if tree}:
            _write(_clients_file(self._folder, server_round), server_round, filled)
        self._places |= dict.fromkeys(filled, server_round)
        self._ledger.append(*(dataclasses.astuple(entry) for entry in messages[self._noted :]))
        state = {
            "server": server,
            "places": self._places,
            "rounds": dataclasses.asdict(self._rounds.mark()),
            "ledger": dataclasses.asdict(self._ledger.mark()),
        }
        _write(_server_file(self._folder, server_round), server_round, state)
        self._kept[server_round] = {*self._places.values()}
        self._written.update(changed)
        self._noted = len(messages)
        self._tidy()

    def close(self) -> None:
        """Removes what only serves to go on, for the run is at its end."""
        remove(self._folder.parent)

    def _tidy(self) -> None:
        """Removes all checkpoints but the newest, and clients' files that these do not name."""
        self._kept = {number: self._kept[number] for number in sorted(self._kept)[-KEPT:]}
        needed = {_server_file(self._folder, number) for number in self._kept}
        needed |= {_clients_file(self._folder, p) for kept in self._kept.values() for p in kept}
        for path in self._folder.glob("*.safetensors"):
            if path not in needed:
                path.unlink()


def _server_file(folder: Path, server_round: int) -> Path:
    return folder / f"round-{server_round:06d}.safetensors"


def _clients_file(folder: Path, server_round: int) -> Path:
    return folder / f"clients-{server_round:06d}.safetensors"


def _rounds_in(folder: Path) -> list[int]:
    """Lists the rounds after which there are checkpoints."""
    names = (SERVER_FILE.fullmatch(path.name) for path in folder.glob("round-*"))
    return [int(name[1]) for name in names if name]


def _write(path: Path, server_round: int, tree: Tree) -> None:
    tensors, plain = flatten(tree)
    told = {CONTENT: json.dumps(plain), ROUND: str(server_round)}
    write_sealed(path, tensors, told)


def _read(path: Path, server_round: int) -> Any:
    """Reads a file that must be of a round, whatever its name says."""
    tensors, metadata = read_sealed(path)
    if metadata.get(ROUND) != str(server_round):
        raise DamagedFileError(path, f"is that of round {metadata.get(ROUND, 'none')}")
    return build(tensors, json.loads(metadata[CONTENT]))


def _entry(values: list[Any]) -> Entry:
    names = [one.name for one in dataclasses.fields(Entry)]
    return Entry(**dict(zip(names, values, strict=True)))
