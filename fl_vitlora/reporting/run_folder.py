"""The run folder: every number of a run, in files that people and programs can read."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from fl_vitlora.checkpoints.logbook import ROUNDS
from fl_vitlora.config import Config, load, to_yaml
from fl_vitlora.data.class_names import CLASS_NAMES, write_names
from fl_vitlora.errors import UserError
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import write_sealed
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
CLASSES = "classes.json"
SHARDS = "shards"
DATA = "data.txt"  # the line that says which images were found, and which of them are used
PACKAGES = ("fl_vitlora", "flwr", "ray", "torch", "timm", "numpy", "flwr-datasets", "cryptography")

LONGEST_NAME = 40  # of the data in the name of a folder, which may have 255 bytes


class RunFolder:
    """One run's files.

    Args:
        path: The folder; see `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hold: Hold | None = None
        self.shards = path / SHARDS
        self.plots = path / "plots"
        self.failures = path / "failures"  # only where there are any

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Makes a new folder and writes down the experiment and its environment.

        Args:
            config: The experiment; `out` names the folder, or it is named after time and seed.

        Returns:
            The folder.

        Raises:
            UserError: When there is a run in it already, or it cannot be made.
        """
        folder = cls(Path(config.out) if config.out else default_path(config))
        check_unused(folder.path)
        try:
            make_folder(folder.path)
            # First: with it a run can be taken up; and of two processes that found the folder
            # free, one has it.
            write_atomically(folder.path / CONFIG, to_yaml(config), new=True)
            folder._furnish()
        except WriteError as error:
            raise UserError(f"run folder {error}; choose another one: --out FOLDER") from None
        return folder

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Takes up the folder of a run that was broken off, without what was half written in it.

        Raises:
            UserError: When there is none, or another process is writing it.
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
        """Makes the folder this process's own, and makes what is missing in it."""
        try:
            with writing(self.path / CONFIG):
                self._hold = Hold(self.path / CONFIG)
        except HeldError:
            raise UserError(
                f"run folder {self.path}: another process is at this run; wait for its end"
            ) from None
        make_private_folder(self.shards)
        make_folder(self.plots)
        if not (self.path / ENVIRONMENT).exists():  # of the process that began the run
            self.write_json(ENVIRONMENT, environment())

    def release(self) -> None:
        """Lets other processes have it."""
        if self._hold is not None:
            self._hold.close()

    def discard(self) -> None:
        """Removes it, where nothing in it is worth keeping."""
        self.release()
        shutil.rmtree(self.path)

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file whole or not at all."""
        write_atomically(self.path / name, content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file for people to read."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def write_failure(self, server_round: int, client: int, trace: str) -> None:
        """Writes down what is known of an update that did not come."""
        make_folder(self.failures)
        name = f"round-{server_round:05d}-client-{client:05d}.txt"
        write_atomically(self.failures / name, f"{trace}\n", durable=False)

    def forget_failures(self, after: int) -> None:
        """Removes what was written of failures in rounds that are run again."""
        for path in self.failures.glob("round-*-client-*.txt"):
            if int(path.name.split("-")[1]) > after:
                path.unlink()

    def write_model(
        self, state: State, name: str = "model.safetensors", class_names: Sequence[str] = ()
    ) -> None:
        """Stores the trained tensors, and the names of the classes in the order of the head."""
        told = {CLASS_NAMES: write_names(class_names)} if class_names else {}
        write_sealed(self.path / name, state, told)

    def write_classes(self, class_names: Sequence[str]) -> None:
        """Stores the names of the classes, in the run's order, for who deploys its shards."""
        write_atomically(self.path / CLASSES, write_names(class_names) + "\n", mode=PRIVATE)


def default_path(config: Config) -> Path:
    """Names a new run folder after its time, data, method and seed."""
    data = Path(config.data.name).name[:LONGEST_NAME]
    label = f"{data}-{config.finetuning.method}-seed{config.seed}"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{label.replace('+', '-')}"


def check_unused(path: Path) -> None:
    """Refuses a folder that holds anything, as no run is overwritten, or that cannot be made."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"run folder {path} is in use; choose a new one: --out FOLDER")
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"run folder {path}: {above} takes none; choose another one: --out FOLDER")


def find_run(path: Path) -> tuple[Config, dict[str, Any] | None]:
    """Finds a run.

    Args:
        path: Its folder.

    Returns:
        Its experiment, and its result if it is at its end.

    Raises:
        UserError: When there is none.
    """
    if not (path / CONFIG).is_file():
        raise UserError(f"{path} holds no run; expected a folder with a {CONFIG}")
    config = replace(load(str(path / CONFIG)), out=str(path))
    return config, read_result(path) if (path / RESULT).exists() else None


def begun_in(run: Path) -> Path:
    """Tells the working directory in which a run was begun; this one where it is not known."""
    try:
        told = json.loads((run / ENVIRONMENT).read_text(encoding="utf-8"))["directory"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return Path.cwd()
    return Path(told) if isinstance(told, str) and Path(told).is_absolute() else Path.cwd()


def find_from(name: str, start: Path) -> str:
    """Finds a file that was named in another working directory.

    Args:
        name: Its path, as it was written.
        start: That directory.

    Returns:
        The path as seen from there, if there is such a file; else the path as it is.
    """
    there = start / name
    return name if start == Path.cwd() or not there.exists() else str(there)


def located(asked: Config, begun: Config, run: Path) -> Config:
    """Finds the files of a run that goes on where the run was begun, wherever it goes on.

    Args:
        asked: The experiment as it goes on; files that it names anew are left as they are.
        begun: The experiment as it was begun.
        run: Its folder.
    """
    start = begun_in(run)
    changes: dict[str, Any] = {}
    for group, name in (("encryption", "key_file"), ("model", "weights"), ("data", "name")):
        now = getattr(asked, group)
        written = getattr(now, name)
        if written == getattr(getattr(begun, group), name):
            changes[group] = replace(now, **{name: find_from(written, start)})
    return replace(asked, **changes)


def with_ring_of(config: Config, starts: Iterable[Path]) -> Config:
    """Finds the key ring of runs that were begun in other working directories.

    Args:
        config: It names the ring.
        starts: Working directories in which the runs were begun.

    Returns:
        The experiment with the first ring that is there; as it is where this directory has one, or
        none of them.
    """
    name = config.encryption.key_file
    if Path(name).exists():
        return config
    there = (find_from(name, start) for start in starts)
    found = next((ring for ring in there if Path(ring).exists()), name)
    return replace(config, encryption=replace(config.encryption, key_file=found))


def is_under_way(run: Path) -> bool:
    """Tells whether a run has begun its rounds and is not at its end, if there is one at all."""
    return (run / CONFIG).exists() and (run / ROUNDS).exists() and not (run / RESULT).exists()


def read_result(run: Path) -> dict[str, Any]:
    """Reads what a run ended with.

    Raises:
        UserError: When it cannot be read.
    """
    try:
        result = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{run / RESULT} cannot be read: {error}") from None
    if not isinstance(result, dict):
        raise UserError(f"{run / RESULT} cannot be read: expected a mapping")
    return result


def has_current_form(result: Mapping[str, Any]) -> bool:
    """Tells whether a result was written by a version that told savings as this one does.

    Older ones compared with as many whole models as the run had messages, repeated and evaluating
    ones among them. Such savings may not stand in one table with others.
    """
    wire = result.get("communication")
    return not isinstance(wire, Mapping) or "saving_with_flower" in wire


def environment() -> dict[str, Any]:
    """Describes the machine and the versions that a result came from."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "directory": str(Path.cwd()),  # from which relative paths of the configuration are seen
        "cpus": os.cpu_count(),
        "gpus": gpus if torch.cuda.is_available() else [],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
