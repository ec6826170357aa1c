"""The run folder: all results of a run, in files that people and programs can read."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fl_vitlora.checkpoints.logbook import ROUNDS
from fl_vitlora.config import Config, load_run, to_yaml
from fl_vitlora.data.class_names import CLASS_NAMES, write_names
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.environment import environment
from fl_vitlora.reporting.json_text import to_json
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import read_sealed, write_sealed
from fl_vitlora.storage.files import (
    PRIVATE,
    TEMPORARY,
    HeldError,
    Hold,
    WriteError,
    make_folder,
    make_private_folder,
    write_atomically,
    writing,
)

CONFIG, RESULT, ENVIRONMENT = "config.yaml", "result.json", "environment.json"
PRODUCTS = "products"  # the library for matrix products, in the file `environment.json`
CLASSES = "classes.json"
CLIENTS = "clients.json"
SHARDS = "shards"
MODEL = "model.safetensors"
BEST, ROUND = "best_model.safetensors", "round"
PLOTS = "plots"
EXAMPLES = "plain_examples.png"  # the plot that shows plain images, on request
DATA = "data.txt"  # the file that says which images were found, and which of them are used

PLACES = (  # groups and names of settings that name files of a run
    *(("encryption", "key_file"), ("model", "weights"), ("privacy", "client_keys")),
    *(("data", "name"), ("data", "shards"), ("data", "storage_keys")),
)
LONGEST_NAME = 40  # the largest number of characters of a data set's name in a folder name


class RunFolder:
    """The folder of one run. `create` makes a new folder; `reopen` opens an existing folder.

    Args:
        path: The path of the folder.

    Attributes:
        path: The path of the folder.
        shards: The folder of the encrypted shards (the files with the images of the clients).
        plots: The folder of the plots.
        failures: The folder for the reasons of clients' failures, which exists only if a client has
            failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hold: Hold | None = None
        self.shards = path / SHARDS
        self.plots = path / PLOTS
        self.failures = path / "failures"

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Makes a new folder, and writes the configuration and the environment into it.

        Args:
            config: The configuration of the experiment, whose setting `out` names the folder. If
                `out` is empty, the folder gets a name from the time, the data set, the method and
                the seed.

        Returns:
            The new folder, which is locked for this process.

        Raises:
            UserError: If the folder is not empty or cannot be made.
        """
        folder = cls(Path(config.out) if config.out else default_path(config))
        check_unused(folder.path)
        try:
            make_folder(folder.path)
            # The configuration is written first, so that the run can be resumed. If two processes
            # found the folder free, the first process that writes the file gets the folder.
            write_atomically(folder.path / CONFIG, to_yaml(config), new=True)
            folder._furnish()
        except WriteError as error:
            raise UserError(f"run folder {error}; choose another folder: --out FOLDER") from None
        return folder

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Opens the folder of an interrupted run, and removes incomplete files from it.

        Raises:
            UserError: If the folder contains no run, or if another process is writing into it.
        """
        folder = cls(path)
        try:
            folder._furnish()
            for half in path.rglob(TEMPORARY):
                with writing(half):
                    half.unlink()
        except WriteError as error:
            raise UserError(f"run folder {error}") from None
        return folder

    def _furnish(self) -> None:
        """Locks the folder for this process, and makes files and folders that are missing in it."""
        try:
            with writing(self.path / CONFIG):
                self._hold = Hold(self.path / CONFIG)
        except HeldError:
            raise UserError(
                f"run folder {self.path}: another process is working on this run; wait until that "
                "process has ended"
            ) from None
        make_private_folder(self.shards)
        make_folder(self.plots)
        if not (self.path / ENVIRONMENT).exists():  # the run's first process writes this file
            self.write_json(ENVIRONMENT, environment())

    def release(self) -> None:
        """Unlocks the folder for other processes."""
        if self._hold is not None:
            self._hold.close()

    def discard(self) -> None:
        """Unlocks and removes the folder with all its files."""
        self.release()
        shutil.rmtree(self.path)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file into the folder, completely or not at all."""
        write_atomically(self.path / name, content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file with line breaks into the folder, so that people can read it."""
        self.write(name, to_json(content))

    def add_environment(self, **facts: str | int) -> None:
        """Adds facts to `environment.json` that are not known before the workers start."""
        known = json.loads((self.path / ENVIRONMENT).read_text("utf-8"))
        self.write_json(ENVIRONMENT, known | facts)

    def write_failure(self, server_round: int, client: int, trace: str) -> None:
        """Writes the stack trace or the reason of a client's failure in a round."""
        make_folder(self.failures)
        name = f"round-{server_round:05d}-client-{client:05d}.txt"
        write_atomically(self.failures / name, f"{trace}\n", durable=False)

    def forget_failures(self, after: int) -> None:
        """Removes the files of failures after round `after`, because later rounds run again."""
        for path in self.failures.glob("round-*-client-*.txt"):
            if int(path.name.split("-")[1]) > after:
                path.unlink()

    def write_model(self, state: State, name: str = MODEL, class_names: Sequence[str] = ()) -> None:
        """Writes trained tensors to a file, with the names of the classes if they are given.

        Args:
            state: The tensors, by name.
            name: The name of the file in the folder.
            class_names: The names of the classes, in the order of the head's outputs.
        """
        metadata = {CLASS_NAMES: write_names(class_names)} if class_names else {}
        write_sealed(self.path / name, state, metadata)

    def write_best(self, state: State, server_round: int, class_names: Sequence[str]) -> None:
        """Writes the tensors of the best model so far, with the number of its round."""
        metadata = {CLASS_NAMES: write_names(class_names), ROUND: str(server_round)}
        write_sealed(self.path / BEST, state, metadata)

    def read_best(self, server_round: int) -> State | None:
        """Reads the tensors of the best model; None if the file has the model of another round."""
        state, metadata = read_sealed(self.path / BEST)
        return state if metadata.get(ROUND) == str(server_round) else None

    def write_classes(self, class_names: Sequence[str]) -> None:
        """Writes the names of the classes in the run's order; a deployment needs this file."""
        write_atomically(self.path / CLASSES, write_names(class_names) + "\n", mode=PRIVATE)

    def write_clients(self, names: Sequence[str | int]) -> None:
        """Writes the names of the clients in the run's order, if the data set names clients."""
        write_atomically(self.path / CLIENTS, json.dumps(list(names)) + "\n", mode=PRIVATE)


def default_path(config: Config) -> Path:
    """Returns the path of a new run folder, named after the time, data, method and seed."""
    data = Path(config.data.shards or config.data.name).absolute().name[:LONGEST_NAME]
    label = f"{data}-{config.finetuning.method}-seed{config.seed}"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{label.replace('+', '-')}"


def check_unused(path: Path) -> None:
    """Checks that a folder is empty or can be made, so that no run is overwritten.

    Raises:
        UserError: If the folder is not empty or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(
            f"run folder {path} is in use (it already contains files, or is a file); choose a new "
            "folder: --out FOLDER"
        )
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(
            f"run folder {path}: {above} is not a folder you can write to; choose another folder: "
            "--out FOLDER"
        )


def find_run(path: Path) -> tuple[Config, dict[str, Any] | None]:
    """Reads a run from its folder.

    Args:
        path: The run folder.

    Returns:
        A pair: the configuration of the experiment, and the content of `result.json`, or None if
        the run is not finished.

    Raises:
        UserError: If the folder contains no run.
    """
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} contains no run; expected a run folder, which has a {CONFIG}")
    config = replace(load_run(str(path / CONFIG)), out=str(path))
    return config, read_result(path) if (path / RESULT).exists() else None


def begun_in(run: Path) -> Path:
    """Returns the working directory in which a run was started.

    If that directory is unknown, the current directory is returned.
    """
    stored = fact_of(run, "directory")
    return Path(stored) if Path(stored).is_absolute() else Path.cwd()


def fact_of(run: Path, name: str) -> str:
    """Returns a text in a run's `environment.json`; an empty text if the text cannot be read."""
    try:
        stored = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""
    return stored if isinstance(stored, str) else ""


def find_from(name: str, start: Path) -> str:
    """Returns the path of a file that a run names relative to its own working directory.

    Args:
        name: The path of the file in the configuration of the run.
        start: The working directory in which the run was started.

    Returns:
        The path `start`/`name` if this file exists, else the path `name`.
    """
    there = start / name
    return name if start == Path.cwd() or not there.exists() else str(there)


def located(asked: Config, begun: Config, run: Path) -> Config:
    """Finds the files of a resumed run relative to the directory in which the run was started.

    Args:
        asked: The configuration with which the run is resumed. Paths that differ from the paths in
            `begun` are not changed.
        begun: The configuration with which the run was started.
        run: The run folder.

    Returns:
        The configuration `asked`, in which paths lead to the files that the run used.
    """
    start = begun_in(run)
    changes: dict[str, Any] = {}
    for group, name in PLACES:
        now = changes.get(group, getattr(asked, group))
        written = getattr(now, name)
        if written is not None and written == getattr(getattr(begun, group), name):
            changes[group] = replace(now, **{name: find_from(written, start)})
    return replace(asked, **changes)


def with_ring_of(config: Config, starts: Iterable[Path]) -> Config:
    """Finds the key ring (the file with secrets) of runs from other working directories.

    Args:
        config: The configuration of the experiment, which names the key ring.
        starts: The working directories in which the runs were started.

    Returns:
        The configuration with the path of the first key ring that exists. The path does not change
        if the key ring is found from the current directory, or from none of the directories.
    """
    name = config.encryption.key_file
    if Path(name).exists():
        return config
    there = (find_from(name, start) for start in starts)
    found = next((ring for ring in there if Path(ring).exists()), name)
    return replace(config, encryption=replace(config.encryption, key_file=found))


def is_under_way(run: Path) -> bool:
    """Returns True if a folder contains a run that has started its rounds but is not finished."""
    return (run / CONFIG).exists() and (run / ROUNDS).exists() and not (run / RESULT).exists()


def read_result(run: Path) -> dict[str, Any]:
    """Reads the result of a run.

    Raises:
        UserError: If the result cannot be read.
    """
    try:
        result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{run / RESULT} cannot be read: {error}") from None
    if not isinstance(result, dict):
        raise UserError(f"{run / RESULT} cannot be read: expected a JSON object")
    return result


def has_current_form(result: Mapping[str, Any]) -> bool:
    """Returns True if the savings in a result were computed in the same way as in this version.

    A saving compares the bytes sent with the bytes that full fine-tuning would send. Older versions
    counted a whole model for each message of the run, even for repeated messages and for messages
    of the evaluation. Savings of older versions must not appear in one table with newer savings.
    """
    wire = result.get("communication")
    return not isinstance(wire, Mapping) or "saving_with_flower" in wire
