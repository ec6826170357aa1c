"""Local training and evaluation: functions of a state, a shard and hyper-parameters.

A model is handed in as a workspace: its trained tensors are overwritten first and read out at the
end, its frozen ones are never touched, so one model serves every client of a worker in turn.

B batch, n images of a shard.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.state import State
from fl_vitlora.training.descent import begin
from fl_vitlora.training.objective import Proximal, Term
from fl_vitlora.training.prediction import PLAIN, Predictor, answering
from fl_vitlora.training.steps import (
    active_of,
    autocast,
    batches_of,
    resting,
    unhalved,
)

EVALUATION_BATCH = {"cpu": 64, "cuda": 256}  # on a core, what its cache can hold


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """What is asked of a client in one round, beside the hyper-parameters of all rounds.

    Attributes:
        learning_rate: The learning rate of this round.
        epochs: Passes over the shard in this round; those of the configuration if not given.
        proximal_mu: Weight μ of the penalty μ/2 · ‖w - w_global‖² (FedProx, arXiv 1812.06127).
        terms: Further terms of the local loss.
        frozen: Trained tensors that rest in this round.
        drift: The tensors that are added after every step, times the learning rate.
    """

    learning_rate: float
    epochs: int | None = None
    proximal_mu: float = 0.0
    terms: tuple[Term, ...] = ()
    frozen: frozenset[str] = frozenset()
    drift: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def all_terms(self) -> tuple[Term, ...]:
        """The terms of the local loss beside the cross-entropy."""
        return (*((Proximal(self.proximal_mu),) if self.proximal_mu else ()), *self.terms)

    def epochs_of(self, config: TrainingConfig) -> int:
        """Returns the passes over the shard."""
        return config.epochs if self.epochs is None else self.epochs


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a client's training came to.

    Attributes:
        state: All trained tensors.
        loss: The mean over all steps, penalties left out.
        steps: The number of optimiser steps.
    """

    state: State
    loss: float
    steps: int


def scheduled_rate(config: TrainingConfig, server_round: int, rounds: int) -> float:
    """Computes the learning rate of a round.

    It rises linearly over the warm-up rounds; then it stays, or falls as half a cosine that would
    reach zero one round after the last.

    Args:
        config: Peak, schedule and warm-up.
        server_round: The number of the round, from 1.
        rounds: The number of rounds of the whole run.

    Returns:
        The rate.

    Example:
        >>> c = TrainingConfig(learning_rate=1.0, schedule="cosine")
        >>> [round(scheduled_rate(c, r, 4), 3) for r in (1, 2, 3, 4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if server_round <= config.warmup_rounds:
        return config.learning_rate * server_round / (config.warmup_rounds + 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = (server_round - 1 - config.warmup_rounds) / max(1, rounds - config.warmup_rounds)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(
    backbone: Backbone,
    state: State,
    shard: Shard,
    *,
    config: TrainingConfig,
    task: LocalTask,
    generator: torch.Generator,
    precision: torch.dtype = torch.float32,
) -> Trained:
    """Trains on one shard.

    Args:
        backbone: A prepared model, the workspace.
        state: The tensors that training starts with.
        shard: Images as they lie on disk; they are normalised here, batch by batch.
        config: Hyper-parameters.
        task: The task of this round.
        generator: The generator of the order of images, on the CPU.
        precision: The number format of activations: float32, bfloat16 or float16.

    Returns:
        What came of it.

    Raises:
        ValueError: When the task freezes every tensor.
    """
    model, size = backbone.model, config.batch_size
    parameters = methods.trainable(model)
    methods.copy_in(parameters, state)
    active = active_of(parameters, task.frozen)
    descent = begin(
        model,
        active,
        config=config,
        rate=task.learning_rate,
        terms=task.all_terms,
        drift=task.drift,
        precision=precision,
    )
    device, epochs = descent.device, task.epochs_of(config)
    images, labels = shard.images.to(device), shard.labels.to(device)
    total, seen, steps = torch.zeros((), device=device), 0, 0
    if not model.training:  # it takes time to say so to all modules again
        model.train()
    with resting(parameters[name] for name in task.frozen):
        for chosen in batches_of(len(shard), epochs, size, generator, device):
            total += descent.step(images[chosen], labels[chosen]).sum()
            seen += len(chosen)
            steps += 1
    loss = float(total) / max(1, seen)
    return Trained(state=methods.copied_out(parameters), loss=loss, steps=steps)


def evaluate(
    backbone: Backbone,
    state: State,
    shard: Shard,
    precision: torch.dtype = torch.float32,
    predictor: Predictor = PLAIN,
) -> tuple[float, float]:
    """Measures a state on a shard.

    Args:
        backbone: A prepared model, the workspace.
        state: All trained tensors.
        shard: The test images as they are on disk.
        precision: The number format of activations.
        predictor: What the model answers to a batch.

    Returns:
        The accuracy in [0, 1] and the mean cross-entropy.
    """
    model = backbone.model
    methods.load_state(model, state)
    model.eval()
    device = next(model.parameters()).device
    correct, loss = 0, 0.0
    size = EVALUATION_BATCH[device.type]
    batches = (torch.split(part, size) for part in (shard.images, shard.labels))
    with answering(model, predictor, precision):
        for images, labels in zip(*batches, strict=True):
            with autocast(device, precision, cached=not predictor.adapts):
                logits = unhalved(predictor(model, normalize(images.to(device)))).detach()
            loss += float(F.cross_entropy(logits, labels.to(device), reduction="sum"))
            correct += int((logits.argmax(dim=-1).cpu() == labels).sum())
    return correct / len(shard), loss / len(shard)


def best_precision(device: torch.device, mixed: bool) -> torch.dtype:
    """Chooses the type of activations: half precision on a GPU where asked, else float32."""
    if device.type != "cuda" or not mixed:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
