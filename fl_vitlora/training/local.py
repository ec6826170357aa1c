"""Trains and evaluates a model on one shard, with given tensors and hyper-parameters.

A worker process has one model for all its clients. First the process copies a client's trained
tensors into the model. After the training, the process copies the trained tensors out again. The
frozen tensors of the model never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.features import FrozenBackbone
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.state import State
from fl_vitlora.training.decisions import Decisions
from fl_vitlora.training.descent import Descent, begin
from fl_vitlora.training.inputs import frozen_of, inputs_of, kept_or_computed, set_mode
from fl_vitlora.training.objective import Term
from fl_vitlora.training.precision import autocast, unhalved
from fl_vitlora.training.prediction import PLAIN, Plain, Predictor, answering
from fl_vitlora.training.steps import active_of, batches_of, resting

EVALUATION_BATCH = {"cpu": 64, "cuda": 256}  # images; on a CPU, 64 images fit into a core's cache


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """The settings of a client's training that can differ between rounds.

    Attributes:
        learning_rate: The learning rate of this round.
        epochs: The number of passes over the shard in this round; None for the number that the
            configuration sets.
        terms: The terms that are added to the cross-entropy in the local loss.
        frozen: The names of the trained tensors that do not change in this round.
        drift: The tensors that are multiplied by the learning rate and added after every step.
    """

    learning_rate: float
    epochs: int | None = None
    terms: tuple[Term, ...] = ()
    frozen: frozenset[str] = frozenset()
    drift: Mapping[str, Tensor] = field(default_factory=dict)

    def epochs_of(self, config: TrainingConfig) -> int:
        """Returns the number of passes over the shard in the task, or else in `config`."""
        return config.epochs if self.epochs is None else self.epochs


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of a client's training.

    Attributes:
        state: The values of all trained tensors after the training, by name.
        loss: The mean cross-entropy over the images of all steps, without penalties.
        steps: The number of optimiser steps.
    """

    state: State
    loss: float
    steps: int


def scheduled_rate(config: TrainingConfig, server_round: int, rounds: int) -> float:
    """Computes the learning rate of a round.

    The rate rises linearly over the warm-up rounds. After the warm-up, the rate stays constant, or
    falls along half a cosine, which would reach zero one round after the last round.

    Args:
        config: The hyper-parameters: the highest rate, the schedule and the number of warm-up
            rounds.
        server_round: The number of the round, from 1.
        rounds: The number of rounds of the whole run.

    Returns:
        The learning rate of the round.

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
    """Trains a model on the images of one client.

    Args:
        backbone: A model with the fine-tuning method. The trained tensors of this model are
            overwritten.
        state: The initial values of the trained tensors, by name.
        shard: The images as they are on disk. This function normalises the images batch by batch.
        config: The hyper-parameters that are the same in all rounds.
        task: The settings of this round.
        generator: The random generator for the order of the images, on the CPU.
        precision: The number format of activations: float32, bfloat16 or float16.

    Returns:
        The trained tensors, the loss and the number of steps.

    Raises:
        ValueError: If the task freezes every tensor.
    """
    model, frozen = backbone.model, frozen_of(backbone.model)
    parameters = methods.trainable(model)
    methods.copy_in(parameters, state)
    active = active_of(parameters, task.frozen)
    set_mode(model, frozen)
    resting_now = resting(parameters[name] for name in task.frozen)
    with resting_now, methods.watch(model) as batch_terms:
        descent = begin(
            model,
            active,
            config=config,
            rate=task.learning_rate,
            terms=task.terms,
            drift=task.drift,
            precision=precision,
            batch_terms=batch_terms,
            frozen=frozen,
        )
        loss, steps = _descend(descent, shard, frozen, task.epochs_of(config), generator)
    return Trained(state=methods.copied_out(parameters), loss=loss, steps=steps)


def _descend(
    descent: Descent,
    shard: Shard,
    frozen: FrozenBackbone | None,
    epochs: int,
    generator: torch.Generator,
) -> tuple[float, int]:
    """Takes all steps of a round on the images of one client.

    Returns:
        A pair: the mean cross-entropy over the images of all steps, and the number of steps.
    """
    device, size = descent.device, descent.config.batch_size
    inputs = inputs_of(shard, frozen, device, descent.precision)
    labels = shard.labels.to(device)
    total, steps = torch.zeros((), device=device), 0
    for chosen in batches_of(len(shard), epochs, size, generator, device):
        total += descent.step(inputs(chosen), labels[chosen]).sum()
        steps += 1
    return float(total) / max(1, epochs * len(shard)), steps


def evaluate(
    backbone: Backbone,
    state: State,
    shard: Shard,
    precision: torch.dtype = torch.float32,
    predictor: Predictor = PLAIN,
    *,
    show: Callable[[Decisions], None] | None = None,
) -> tuple[float, float]:
    """Measures the accuracy and the loss of a model with given tensors on test images.

    Args:
        backbone: A model with the fine-tuning method. The trained tensors of this model are
            overwritten.
        state: The values of all trained tensors, by name.
        shard: The test images as they are on disk, not normalised.
        precision: The number format of activations: float32, bfloat16 or float16.
        predictor: The function that computes the logits of a batch with the model.
        show: A function that is called with the model's decisions for each batch, or None.

    Returns:
        A pair: the accuracy in [0, 1], and the mean cross-entropy.
    """
    model = backbone.model
    methods.load_state(model, state)
    model.eval()
    device = next(model.parameters()).device
    correct, loss = 0, 0.0
    frozen = frozen_of(model) if type(predictor) is Plain else None
    # Features are computed with the layers of training, so that kept features have the same bits.
    way = answering(model, predictor, precision) if frozen is None else torch.inference_mode()
    with way:
        for chosen in torch.split(torch.arange(len(shard)), EVALUATION_BATCH[device.type]):
            batch = shard.take(chosen)
            with autocast(device, precision, cached=not predictor.adapts):
                if frozen is None:
                    logits = predictor(model, normalize(batch.images.to(device)))
                else:
                    logits = frozen.logits(kept_or_computed(frozen, batch, device, precision))
            logits = unhalved(logits).detach()
            loss += float(F.cross_entropy(logits, batch.labels.to(device), reduction="sum"))
            correct += int((logits.argmax(dim=-1).cpu() == batch.labels).sum())
            if show is not None:
                show(Decisions.of(logits, batch.labels))
    return correct / len(shard), loss / len(shard)
