"""The run folder: every number of a run, in files that people and programs can read."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fl_vitlora.config import Config, to_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.files import write_atomically
from fl_vitlora.state import State

PACKAGES = ("fl_vitlora", "flwr", "ray", "torch", "timm", "numpy", "flwr-datasets", "cryptography")


class RunFolder:
    """One run's files.

    Args:
        path: The folder; see `create`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shards = path / "shards"
        self.plots = path / "plots"

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
            for part in (folder.path, folder.shards, folder.plots):
                part.mkdir(parents=True, exist_ok=True)
            folder.write("config.yaml", to_yaml(config))
            folder.write_json("environment.json", environment())
        except OSError as error:
            raise UserError(f"run folder {folder.path}: {error.strerror}") from None
        return folder

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file whole or not at all."""
        write_atomically(self.path / name, content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file for people to read."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def append_round(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `rounds.jsonl`."""
        with (self.path / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write_model(self, state: State) -> None:
        """Stores the trained tensors."""
        self.write("model.safetensors", save({n: t.contiguous() for n, t in state.items()}))


def default_path(config: Config) -> Path:
    """Names a new run folder after its time, data, method and seed."""
    data = Path(config.data.name).name
    label = f"{data}-{config.finetuning.method}-seed{config.seed}"
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{label.replace('+', '-')}"


def check_unused(path: Path) -> None:
    """Refuses a folder that holds anything, as no run is overwritten, or that cannot be made."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"run folder {path} is in use; choose a new one: --out FOLDER")
    above = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"run folder {path}: {above} takes none; choose another one: --out FOLDER")


def environment() -> dict[str, Any]:
    """Describes the machine and the versions that a result came from."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": gpus if torch.cuda.is_available() else [],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
