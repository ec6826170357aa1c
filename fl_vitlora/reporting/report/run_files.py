"""Reads from a run folder what its report shows."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl_vitlora.checkpoints.logbook import ROUNDS
from fl_vitlora.config import Config
from fl_vitlora.data.sources import Indices
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.attack_pictures import FOLDER
from fl_vitlora.reporting.plots import LABELS
from fl_vitlora.reporting.run_folder import CONFIG, ENVIRONMENT, EXAMPLES, PLOTS, find_run

Line = dict[str, Any]

ATTACKS = "attacks.json"
MOST_ROWS, MOST_COLUMNS = 500, 100  # clients and classes that a chart of the partition can show
# Pictures whose numbers the report draws itself.
DRAWN = (
    "accuracy_over_rounds.png",
    "accuracy_over_megabytes.png",
    "accuracy_over_transfer.png",
    "megabytes_over_rounds.png",
    "confusion_matrix.png",
)
PARTITION = "label_distribution.png"
CAPTIONS = {
    EXAMPLES: "Training images of client 0, plain above and encrypted below. These are plain "
    "images: give this page only to people who may see them"
}


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """What a run folder says about its run.

    Attributes:
        folder: The run folder.
        config: The settings of the run.
        settings: The text of `config.yaml`.
        result: The content of `result.json`.
        lines: The lines of `rounds.jsonl`.
        environment: The content of `environment.json`; empty if there is none.
        counts: The numbers of training images, int64 (clients, classes); None if they are unknown
            or too many for a chart.
        attacks: The content of `attacks.json`; None if the run was not attacked.
        pictures: Pictures of the folder `plots` that show more than the report draws itself, each
            as a `data:` address, by caption.
        attack_pictures: The pictures that the last audit drew, each as a `data:` address, by
            the names of the attack and the adversary.
    """

    folder: Path
    config: Config
    settings: str
    result: Line
    lines: Sequence[Line]
    environment: Line = field(default_factory=dict)
    counts: Indices | None = None
    attacks: Line | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)
    attack_pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> list[str]:
        """Returns the names of the classes, in the order of the head's outputs."""
        return list(self.result["class_names"])

    @property
    def shows_plain(self) -> bool:
        """Returns True if a picture shows plain images of the owners."""
        return CAPTIONS[EXAMPLES] in self.pictures or bool(self.attack_pictures)

    @property
    def name(self) -> str:
        """Returns the name of the run folder."""
        return self.folder.resolve().name


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder.

    Raises:
        UserError: If the folder has no finished run, or a file in it cannot be read.
    """
    config, result = find_run(folder)
    if result is None:
        raise UserError(f"{folder}: this run is not finished; finish it first: --resume {folder}")
    counts = _counts(folder / PLOTS / LABELS, result)
    drawn = DRAWN if counts is None else (*DRAWN, PARTITION)
    attacks = _object(folder / ATTACKS) if (folder / ATTACKS).exists() else None
    return RunFiles(
        folder=folder,
        config=config,
        settings=_text(folder / CONFIG),
        result=result,
        lines=read_lines(folder),
        environment=_object(folder / ENVIRONMENT) if (folder / ENVIRONMENT).exists() else {},
        counts=counts,
        attacks=attacks,
        attack_pictures=dict(_attack_pictures(folder, attacks or {})),
        pictures={
            CAPTIONS.get(path.name, path.stem.replace("_", " ")): address_of(path)
            for path in sorted((folder / PLOTS).glob("*.png"))
            if path.name not in drawn and not path.is_symlink()  # a link may lead to any picture
        },
    )


def read_lines(folder: Path) -> list[Line]:
    """Returns the lines of `rounds.jsonl`.

    Raises:
        UserError: If the file cannot be read.
    """
    path = folder / ROUNDS
    return [_json(path, line) for line in _text(path).split("\n") if line]


def _attack_pictures(folder: Path, attacks: Line) -> Iterator[tuple[str, str]]:
    """Yields the attacks whose pictures the last audit drew, and the addresses of the pictures."""
    for told in attacks.get("attacks", []):
        path = folder / FOLDER / Path(told.get("picture") or "none").name
        if path.is_file() and not path.is_symlink():  # a link may lead to any picture
            yield f"{told['attack']}, {told['adversary']}", address_of(path)


def address_of(path: Path) -> str:
    """Returns a picture as a `data:` address, which contains the picture itself."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _json(path: Path, text: str) -> Line:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read: expected a JSON object")
    return found


def _object(path: Path) -> Line:
    return _json(path, _text(path))


def _counts(path: Path, result: Line) -> Indices | None:
    """Reads how many images of each class each client has.

    Raises:
        UserError: If a line names a client or a class that the run does not have.
    """
    clients, names = result["clients"], result["class_names"]
    if not path.exists() or clients > MOST_ROWS or len(names) > MOST_COLUMNS:
        return None
    counts, column = (
        np.zeros((clients, len(names)), dtype=np.int64),
        {n: i for i, n in enumerate(names)},
    )
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                counts[int(row["client"]), column[row["class"]]] = int(row["images"])
    except (OSError, LookupError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return counts
