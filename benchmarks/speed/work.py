"""The work that all contenders do: the local steps of a finished run on its encrypted shards.

Each contender is a separate program. It gets the folder of a run of this project, trains the
clients of this run for a number of rounds, and prints one line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_vitlora.config import Config, load
from fl_vitlora.data.shards import TEST_SHARD, Shard, open_shard
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import normalize

CLASSES = 10


@dataclass(frozen=True)
class Task:
    """The task of a contender.

    Attributes:
        folder: Folder of a finished run of this project, with its configuration and its shards.
        rounds: Number of rounds to train.
        workers: Number of processes that may train.
    """

    folder: Path
    rounds: int
    workers: int

    @property
    def config(self) -> Config:
        """Returns the configuration of the run."""
        return load(str(self.folder / "config.yaml"))

    def shards(self) -> list[Shard]:
        """Opens the shards of all clients, sorted by client."""
        keys = storage_keys(self.config)
        paths = sorted((self.folder / "shards").glob("client-*"))
        return [open_shard(path, keys) for path in paths]

    def test_shard(self) -> Shard:
        """Opens the shard of the test images."""
        return open_shard(self.folder / "shards" / TEST_SHARD, storage_keys(self.config))


def asked() -> Task:
    """Returns the task from the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    return Task(**vars(parser.parse_args()))


def build(config: Config) -> nn.Module:
    """Builds the model with its adapters; only the trained tensors require gradients."""
    built = backbone.build(config.model, CLASSES, config.seed)
    methods.prepare(built.model, config.finetuning, config.seed)
    return built.model


def optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Makes the optimiser of a round."""
    active = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = config.training
    return torch.optim.AdamW(
        active, lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )


def batches(shard: Shard, config: Config) -> list[Tensor]:
    """Divides the images of an epoch into steps, as `training.local.train` does."""
    count = len(shard)
    return list(torch.randperm(count).tensor_split(-(-count // config.training.batch_size)))


def epoch(model: nn.Module, shard: Shard, config: Config) -> float:
    """Trains one client for one epoch in bare PyTorch.

    Returns:
        The mean loss.
    """
    stepper, total = optimizer(model, config), 0.0
    model.train()
    for chosen in batches(shard, config):
        logits = model(normalize(shard.images[chosen]))
        loss = nn.functional.cross_entropy(
            logits, shard.labels[chosen], label_smoothing=config.training.label_smoothing
        )
        stepper.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if config.training.clip_norm is not None:
            active = [parameter for parameter in model.parameters() if parameter.requires_grad]
            nn.utils.clip_grad_norm_(active, config.training.clip_norm)
        stepper.step()
        total += float(loss.detach()) * len(chosen)
    return total / len(shard)


@torch.inference_mode()
def accuracy(model: nn.Module, shard: Shard) -> float:
    """Returns the accuracy of a model on the test images, in [0, 1]."""
    model.eval()
    logits = model(normalize(shard.images))
    return float((logits.argmax(dim=-1) == shard.labels).float().mean())


def report(seconds: list[float], ready: float, measured: float | None = None) -> None:
    """Prints the result as one line of JSON.

    Args:
        seconds: Duration of each round in seconds.
        ready: Value of `time.time()` at the first local step, or shortly before it.
        measured: Accuracy at the end; None if it was not measured.
    """
    print(json.dumps({"seconds": seconds, "ready": ready, "accuracy": measured}), flush=True)


def now() -> float:
    """Returns the time of day in seconds; unlike other clocks, all processes share it."""
    return time.time()
