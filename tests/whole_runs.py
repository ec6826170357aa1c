"""Small whole runs over real Flower and Ray, and what they leave behind."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard, open_shard
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.experiment.preparation import (
    OwnedImages,
    prepare_holder,
    prepare_images,
    prepare_model,
    storage_keys,
)
from fl_vitlora.experiment.runner import run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.simulation.engine import Engine

SMALL = {
    "clients": 4,
    "rounds": 2,
    "fraction": 0.75,
    "seed": 7,
    "data.limit": 160,
    "training.epochs": 1,
    "engine.device": "cpu",
    "engine.workers": 2,
}

# Two runs that add in another order differ by rounding. AdamW makes whole steps of it wherever a
# gradient is nearly zero (`test_adaptation`); plain descent does not, so that runs with it can be
# compared closely on any processor. Gradients are sums of some hundred terms.
DESCENT: dict[str, Any] = {"training__optimizer": "sgd", "training__learning_rate": 0.05}
ROUNDING = 256 * 2.0**-24


@dataclass(frozen=True)
class Finished:
    config: Config
    result: dict[str, Any]
    folder: Path
    messages: list[bytes]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Reads `rounds.jsonl`."""
        text = (self.folder / "rounds.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def execute(folder: Path, engine: Engine | None = None, **overrides: Any) -> Finished:
    """Runs a small experiment in a folder, over a Ray that is up already or over its own."""
    given = {path.replace("__", "."): value for path, value in overrides.items()}
    paths = {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    config = configuration.load(None, {**SMALL, **paths, **given})
    strategy = strategies.load_for(config)
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    messages: list[bytes] = []

    def keep(message: Any) -> None:
        own = copy.deepcopy(message)  # Flower notes ids in it, while Ray may still be sending it
        messages.extend(part.deflate() for part in get_all_nested_objects(own).values())

    watch = Watch(tap=keep)
    result, path = run(config, strategy, watch, engine=engine)
    return Finished(config, result, path, messages)


def owned(config: Config) -> tuple[OwnedImages, KeyHolder]:
    """What only the owners of a run have: plain images and the key."""
    images = prepare_images(config)
    model = prepare_model(config, len(images.class_names), "cpu")
    return images, prepare_holder(config, model)


def opened(done: Finished, name: str) -> Shard:
    """Opens a shard of a run with the storage keys of its ring."""
    return open_shard(done.folder / "shards" / name, storage_keys(done.config))
