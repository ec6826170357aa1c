"""Stores the data that the server sees in each round, if the setting `record_updates` is true.

For each round, there is one file in the run folder, such as `updates/round-00001.safetensors`. The
file contains these tensors:

    model/NAME                 the exchanged tensors at the beginning of the round
    client-K/delta/NAME        the tensors after client K's training, minus the tensors before it
    client-K/report/NAME       the tensors that client K sent as the report of the strategy

The metadata of the file contain, for each client, its number, its number of images, its loss and
its number of steps. With secure aggregation, ``sum`` replaces ``client-K`` and has the mean of all
updates. Only the owner of the folder can read these files, because the files contain everything
that a server needs to attack its clients.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.federation.observer import Sight
from fl_vitlora.population.sampling import cohort_size
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import read_sealed, write_sealed
from fl_vitlora.storage.files import make_private_folder
from fl_vitlora.strategy import SEVERAL, Update

FOLDER, FILES = "updates", "round-*.safetensors"
MODEL, DELTA, REPORT, SUM = "model", "delta", "report", "sum"
ROUND, UPDATES = "round", "updates"
FIELDS = ("client", "samples", "loss", "steps", "rank", "members", "population")


class RecordedUpdates:
    """An observer that stores the data of each round in the run folder.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER

    def observe(self, sight: Sight) -> None:
        """Stores the data of one round; if a round is repeated, its file is replaced.

        Raises:
            WriteError: If the file cannot be written.
        """
        make_private_folder(self._folder)
        entries = [{name: getattr(update, name) for name in FIELDS} for update in sight.updates]
        metadata = {ROUND: str(sight.round), UPDATES: json.dumps(entries)}
        write_sealed(file_of(self._folder.parent, sight.round), dict(_tensors(sight)), metadata)


def recorders(config: Config, run: Path) -> tuple[RecordedUpdates, ...]:
    """Returns the observer that records updates, or () if `record_updates` is False."""
    return (RecordedUpdates(run),) if config.record_updates else ()


def what_is_recorded(config: Config, trained: State) -> str:
    """Returns a sentence about the updates that a run will record, and the size of the files.

    Args:
        config: The configuration of the experiment.
        trained: The tensors that clients train.

    Returns:
        The sentence, or an empty text if the run records no updates.
    """
    if not config.record_updates:
        return ""
    updates = (
        1 if config.privacy.secure_aggregation else cohort_size(config.clients, config.fraction)
    )
    size = (1 + updates) * sum(t.numel() * t.element_size() for t in trained.values())
    what = "the sum of all updates" if config.privacy.secure_aggregation else "every update"
    return (
        f"the run records the model and {what} of {config.rounds} rounds in {FOLDER}/, about "
        f"{size * config.rounds / 1e6:.1f} MB; anyone with these files knows what the server knows"
    )


def file_of(run: Path, server_round: int) -> Path:
    """Returns the path of the file of a round in a run folder."""
    return run / FOLDER / f"round-{server_round:05d}.safetensors"


def read_round(run: Path, server_round: int) -> Sight:
    """Reads a round that `RecordedUpdates` has stored.

    Args:
        run: The run folder.
        server_round: The number of the round, from 1.

    Returns:
        The data that the server saw. All tensors are bit for bit equal to the recorded tensors.

    Raises:
        UserError: If the round was not recorded, or if the file is damaged.
    """
    path = file_of(run, server_round)
    if not path.exists():
        raise UserError(
            f"{path}: this file does not exist; a run records its updates only if it is started "
            "with --record-updates"
        )
    tensors, metadata = read_sealed(path)
    entries: list[dict[str, Any]] = json.loads(metadata[UPDATES])
    return Sight(
        round=int(metadata[ROUND]),
        model=_below(tensors, MODEL),
        updates=tuple(
            Update(
                **entry,
                delta=_below(tensors, f"{_place(entry['client'])}/{DELTA}"),
                report=_below(tensors, f"{_place(entry['client'])}/{REPORT}"),
            )
            for entry in entries
        ),
    )


class RecordedRounds(Sequence[Sight]):
    """The sequence of the recorded rounds of a run; a round is read only when it is needed.

    Args:
        run: The run folder. If the folder has no recorded rounds, the sequence is empty.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._numbers = sorted(
            int(path.stem.removeprefix("round-")) for path in (run / FOLDER).glob(FILES)
        )

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, position: int) -> Sight: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[Sight]: ...

    def __getitem__(self, position: int | slice) -> Sight | Sequence[Sight]:
        if isinstance(position, slice):
            return [read_round(self._run, number) for number in self._numbers[position]]
        return read_round(self._run, self._numbers[position])


def _place(client: int) -> str:
    return SUM if client == SEVERAL else f"client-{client}"


def _tensors(sight: Sight) -> Iterator[tuple[str, Tensor]]:
    """Yields copies of all tensors of a round, each with its name in the file."""
    states = {MODEL: sight.model}
    for update in sight.updates:
        states[f"{_place(update.client)}/{DELTA}"] = update.delta
        states[f"{_place(update.client)}/{REPORT}"] = update.report
    for place, state in states.items():
        for name, tensor in state.items():
            yield f"{place}/{name}", tensor.clone()


def _below(tensors: State, place: str) -> State:
    return {
        name.removeprefix(f"{place}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{place}/")
    }
