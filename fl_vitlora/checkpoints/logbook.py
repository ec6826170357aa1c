"""The logbook of a run: its rounds, its messages, and checkpoints from which the run can resume.

    rounds.jsonl                            one line for each round
    checkpoint/ledger.jsonl                 one line for each message up to the last checkpoint
    checkpoint/round-000012.safetensors     the server's state after round 12, and the names of the
                                            files with the clients' states
    checkpoint/clients-000012.safetensors   the clients' states that changed after the previous
                                            checkpoint

The clients' states are private: only the owner may read the folder `checkpoint` and its files, even
if the umask allows more. All files are protected by checksums: a safetensors file contains its own
digest, and the server's state contains the marks (lengths and digests) of the two journals, the
files that end in `jsonl`. Every safetensors file is written completely under another name and then
renamed. The file with the server's state is written last. The two newest checkpoints are kept. If
the newest checkpoint is damaged, the run resumes from the previous checkpoint. The result is then
exactly the result of an uninterrupted run.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fl_vitlora.checkpoints.journal import Journal, Mark
from fl_vitlora.communication.ledger import Entry, Ledger, Prefix
from fl_vitlora.storage.checksummed import DamagedFileError, read_sealed, write_sealed
from fl_vitlora.storage.files import PRIVATE, make_private_folder
from fl_vitlora.storage.trees import Tree, build, flatten

FOLDER, LEDGER, ROUNDS = "checkpoint", "ledger.jsonl", "rounds.jsonl"
SERVER_FILE = re.compile(r"round-(\d{6,})\.safetensors")
CONTENT, ROUND = "content", "round"
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after one of its rounds.

    Attributes:
        round: Number of the round.
        server: State of the server, such as its model and the state of the strategy.
        clients: State of each client, by the client's number. Clients without a state are left out.
        ledger: The sizes of all messages from the first round to this round.
        lines: All lines of `rounds.jsonl` from the first round to this round.
    """

    round: int
    server: Tree
    clients: Mapping[int, Tree]
    ledger: Ledger
    lines: list[dict[str, Any]]


def lacks_checkpoints(run: Path, every: int) -> bool:
    """Returns True if a run cannot resume: its checkpoints are missing, although rounds have ended.

    A run that has not written its first checkpoint yet can start again from round 1. Its result is
    then exactly the result of an uninterrupted run.

    Args:
        run: The run folder.
        every: Number of rounds between two checkpoints; 0 if the run writes no checkpoints.
    """
    finished = (run / ROUNDS).read_bytes().count(b"\n") if (run / ROUNDS).exists() else 0
    return finished > every and not _rounds_in(run / FOLDER)


def remove(run: Path) -> None:
    """Removes the checkpoints of a finished run."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


class Logbook:
    """Writes the rounds, messages and checkpoints of a run.

    Call `begin` or `take_up` to make a logbook.

    Args:
        run: The run folder.
        rounds: Mark (length and digest) up to which the journal of rounds is kept; None to begin a
            new journal.
        ledger: Mark up to which the journal of messages is kept; None to begin a new journal.
    """

    def __init__(self, run: Path, rounds: Mark | None = None, ledger: Mark | None = None) -> None:
        self._folder = run / FOLDER
        self._rounds = Journal(run / ROUNDS, rounds)
        self._ledger = Journal(self._folder / LEDGER, ledger, mode=PRIVATE)
        self._places: dict[int, int] = {}  # for each client: the round of the file with its state
        self._kept: dict[int, set[int]] = {}  # for each checkpoint: rounds of clients' files
        self._written: dict[int, object] = {}  # for each client: the state that is on the disk
        self._noted = 0  # number of messages in the journal

    @classmethod
    def begin(cls, run: Path) -> Self:
        """Returns a new, empty logbook, and removes an earlier logbook from the run folder."""
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        make_private_folder(run / FOLDER)
        return cls(run)

    @classmethod
    def take_up(cls, run: Path) -> tuple[Self, Checkpoint] | None:
        """Reads the newest undamaged checkpoint, and removes later lines from the journals.

        Returns:
            The logbook and the checkpoint, or None if there is no checkpoint yet.

        Raises:
            DamagedFileError: If there are checkpoints, but all of them are damaged.
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
        """Returns the logbook and the checkpoint of one round; see `take_up`.

        Raises:
            DamagedFileError: If the checkpoint is damaged, or this program version cannot read it.
        """
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
            raise DamagedFileError(
                path, f"is not a checkpoint that this version can read ({error!r})"
            ) from None

    def note_round(self, line: Mapping[str, Any]) -> None:
        """Appends a line to `rounds.jsonl`."""
        self._rounds.append(line)

    def write(
        self,
        server_round: int,
        server: Tree,
        messages: Prefix,
        clients: Mapping[int, object],
        tree_of: Callable[[Any], Tree],
    ) -> None:
        """Writes a checkpoint if this round has none, and removes files that are no longer needed.

        Args:
            server_round: Number of the round that has just ended.
            server: State of the server, such as its model and the state of the strategy.
            messages: All messages of the run up to this round.
            clients: State of each client, by the client's number. A client's state that has changed
                since the last call must be a new object.
            tree_of: Function that turns a client's state into a tree (nested mappings and lists of
                plain values and tensors). If the tree of a client's state is empty, nothing is
                stored for this client.
        """
        if server_round in self._kept:
            return
        changed = {c: state for c, state in clients.items() if self._written.get(c) is not state}
        trees = {client: tree_of(state) for client, state in changed.items()}
        if filled := {client: tree for client, tree in trees.items() if tree}:
            _write(_clients_file(self._folder, server_round), server_round, filled)
        self._places |= dict.fromkeys(filled, server_round)
        self._ledger.append(*map(dataclasses.astuple, messages.after(self._noted)))
        state = {
            "server": server,
            "places": self._places,
            "rounds": dataclasses.asdict(self._rounds.mark()),
            "ledger": dataclasses.asdict(self._ledger.mark()),
        }
        _write(_server_file(self._folder, server_round), server_round, state)
        self._kept[server_round] = {*self._places.values()}
        self._written.update(changed)
        self._noted = messages.length
        self._tidy()

    def close(self) -> None:
        """Removes the checkpoints; call this method when the run is finished."""
        remove(self._folder.parent)

    def _tidy(self) -> None:
        """Removes old checkpoints, and files with clients' states that no kept checkpoint uses."""
        self._kept = {number: self._kept[number] for number in sorted(self._kept)[-KEPT:]}
        needed = {_server_file(self._folder, number) for number in self._kept}
        needed |= {_clients_file(self._folder, p) for kept in self._kept.values() for p in kept}
        for path in self._folder.glob("*.safetensors"):
            if path not in needed:
                path.unlink()


def _server_file(folder: Path, server_round: int) -> Path:
    """Returns the path of the file with the server's state after a round."""
    return folder / f"round-{server_round:06d}.safetensors"


def _clients_file(folder: Path, server_round: int) -> Path:
    """Returns the path of the file with the clients' states that changed up to a round."""
    return folder / f"clients-{server_round:06d}.safetensors"


def _rounds_in(folder: Path) -> list[int]:
    """Returns the numbers of the rounds for which a folder contains checkpoints."""
    names = (SERVER_FILE.fullmatch(path.name) for path in folder.glob("round-*"))
    return [int(name[1]) for name in names if name]


def _write(path: Path, server_round: int, tree: Tree) -> None:
    """Writes a tree and the number of its round to a file with a checksum."""
    tensors, plain = flatten(tree)
    metadata = {CONTENT: json.dumps(plain), ROUND: str(server_round)}
    write_sealed(path, tensors, metadata)


def _read(path: Path, server_round: int) -> Any:
    """Returns the tree in a file; the file must have been written after the given round.

    Raises:
        DamagedFileError: If the file is damaged or belongs to another round.
    """
    tensors, metadata = read_sealed(path)
    if metadata.get(ROUND) != str(server_round):
        raise DamagedFileError(
            path,
            "has one round in its name and another round in its content: "
            f"{metadata.get(ROUND, 'none')}",
        )
    return build(tensors, json.loads(metadata[CONTENT]))


def _entry(values: list[Any]) -> Entry:
    """Returns the message that a line of the journal describes."""
    names = [field.name for field in dataclasses.fields(Entry)]
    return Entry(**dict(zip(names, values, strict=True)))
