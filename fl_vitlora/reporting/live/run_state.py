"""Says from the files of a run folder what a run has done so far, also during the run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fl_vitlora.checkpoints.logbook import ROUNDS
from fl_vitlora.config import Config, load_run
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.run_folder import CONFIG, ENVIRONMENT, RESULT, read_result
from fl_vitlora.storage.locks import is_locked

Line = Mapping[str, Any]
T = TypeVar("T")
State = Literal["preparing", "running", "interrupted", "unfinished", "ended"]

SECONDS_TO_LOCK = 10.0  # within this time a run that has just made its folder locks it
RECENT = 5  # the number of the last rounds whose median says how long a round takes
MEANING: Mapping[State, str] = {
    "preparing": "The run prepares images, model and workers; no round has ended yet.",
    "running": "The run is training.",
    "interrupted": "No program works on this run, and it has no result: it was interrupted.",
    "unfinished": "This run has no result. The file system has no locks, so it is unknown whether "
    "a program works on the run.",
    "ended": "The run has ended.",
}


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a run has done so far.

    Attributes:
        folder: The run folder.
        state: What the run is doing.
        config: The settings of the run.
        lines: The lines of `rounds.jsonl`, one for each round that has ended.
        result: The content of `result.json`; None if the run has no result.
        environment: The content of `environment.json`; empty if there is none.
    """

    folder: Path
    state: State
    config: Config
    lines: Sequence[Line] = ()
    result: Line | None = None
    environment: Line = field(default_factory=dict)

    @property
    def sent(self) -> int:
        """Returns the bytes of all messages of the rounds that have ended."""
        return sum(line["uplink_bytes"] + line["downlink_bytes"] for line in self.lines)

    @property
    def seconds_a_round(self) -> float | None:
        """Returns the median duration of the last rounds; None before the first round has ended."""
        recent = [line["seconds"] for line in self.lines[-RECENT:]]
        return statistics.median(recent) if recent else None

    @property
    def seconds_left(self) -> float | None:
        """Returns an estimate of how long the remaining rounds take; None if the run is at rest."""
        if self.state != "running" or self.seconds_a_round is None:
            return None
        return self.seconds_a_round * (self.config.rounds - len(self.lines))

    @property
    def failures(self) -> list[tuple[int, int, str]]:
        """Returns round, client and reason of each update that failed."""
        return [
            (line["round"], failed["client"], failed["reason"])
            for line in self.lines
            for failed in line["failures"]
        ]


class Files:
    """Reads files that may change, and parses a file again only if it has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], Any]] = {}

    def read(self, path: Path, parse: Callable[[Path], T]) -> T | None:
        """Returns the parsed content of a file; None if there is no such file.

        Args:
            path: The path of the file.
            parse: The function that reads and parses the file.

        Raises:
            UserError: If the file cannot be read.
        """
        try:
            status = path.stat()
            mark = (status.st_ino, status.st_size, status.st_mtime_ns)
            if path not in self._known or self._known[path][0] != mark:
                self._known[path] = mark, parse(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        found: T = self._known[path][1]
        return found


def read_rounds(path: Path) -> list[Line]:
    """Returns the complete lines of a file `rounds.jsonl`, which a run may be writing right now.

    Raises:
        UserError: If a complete line is not the line of a round.
    """
    return complete_lines(path.read_bytes(), path)


def complete_lines(content: bytes, path: Path) -> list[Line]:
    r"""Returns the lines of a journal up to the last line break.

    Args:
        content: The content of the file. Bytes after the last line break belong to a line that is
            being written, and are left out.
        path: The path of the file, for error messages.

    Raises:
        UserError: If a line is not the line of a round.

    Example:
        >>> complete_lines(b'{"round": 1}\n{"rou', Path("rounds.jsonl"))
        [{'round': 1}]
    """
    found = list[Line]()
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} cannot be read: {error}") from None
        if not isinstance(line, dict) or "round" not in line:
            raise UserError(f"{path}, line {number}: expected the line of a round")
        found.append(line)
    return found


def read_state(run: Path, files: Files) -> RunState:
    """Reads what a run has done so far.

    Args:
        run: The run folder.
        files: The object that remembers files that have not changed.

    Raises:
        UserError: If the folder contains no run, or a file in it cannot be read.
    """
    config = files.read(run / CONFIG, lambda path: load_run(str(path)))
    if config is None:
        raise UserError(f"{run} contains no run; expected a run folder, which has a {CONFIG}")
    # The lock is looked at before the result: a run writes its result, and then gives up the lock.
    locked, lines = is_locked(run / CONFIG), files.read(run / ROUNDS, read_rounds) or []
    result = files.read(run / RESULT, lambda path: read_result(path.parent))
    environment = files.read(run / ENVIRONMENT, _environment)
    state = _state(locked, begun=bool(lines), ended=result is not None)
    if state == "interrupted" and environment is None and _is_new(run / CONFIG):
        state = "preparing"  # the run has written its first file, and takes the lock next
    return RunState(
        folder=run,
        state=state,
        config=config,
        lines=lines,
        result=result,
        environment=environment or {},
    )


def _state(locked: bool | None, *, begun: bool, ended: bool) -> State:
    if ended:
        return "ended"
    if locked is None:
        return "unfinished"
    if not locked:
        return "interrupted"
    return "running" if begun else "preparing"


def _is_new(path: Path) -> bool:
    """Returns True if a file was written some seconds ago."""
    try:
        return time.time() - path.stat().st_mtime < SECONDS_TO_LOCK
    except OSError:
        return False


def _environment(path: Path) -> Line:
    """Returns the content of `environment.json`; empty if the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
