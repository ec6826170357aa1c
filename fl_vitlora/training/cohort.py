"""Many clients trained in one batch: what each would have learnt alone, in fewer, larger steps.

The trained tensors of the clients are stacked, the frozen ones shared (`training.stacking`). The
loss is the sum of the clients' own losses, so that the gradient of a slice is its client's; the
optimiser computes entry by entry; norms are clipped client by client. Whoever has taken all its
steps leaves, and the batch goes on without it. So every client's tensors are those of training it
alone, but for the rounding of sums in another order; and for float16, where a step that overflows
for one client is left out by all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import methods, targets
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.models.reading import put_reader
from fl_vitlora.state import State
from fl_vitlora.training.local import LocalTask, Trained, train
from fl_vitlora.training.objective import cross_entropy, penalties
from fl_vitlora.training.optimizers import is_entrywise, make_optimizer
from fl_vitlora.training.stacking import Stack, can_stack
from fl_vitlora.training.steps import (
    active_of,
    autocast,
    batches_of,
    clip_each,
    drift_on,
    resting,
    step,
    unhalved,
)


@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """All that one client's training depends on, beside what the clients of a run share.

    Attributes:
        start: All trained tensors, where training starts.
        shard: Its images.
        task: The task of the round.
        generator: The generator of the order of images, on the CPU.
        reader: The frozen part of the client's patch embedding.
        increments: The sums that were merged into the frozen weights, by the paths of pairs.
    """

    start: State
    shard: Shard
    task: LocalTask
    generator: torch.Generator
    reader: PatchReader
    increments: State = field(default_factory=dict)

    def goes_with(self, other: LocalJob) -> bool:
        """Tells whether the two can be given in one batch."""
        mine, theirs = self.task, other.task
        return (
            mine.learning_rate == theirs.learning_rate
            and mine.proximal_mu == theirs.proximal_mu
            and mine.terms == theirs.terms
            and mine.frozen == theirs.frozen
            and mine.drift.keys() == theirs.drift.keys()
            and self.increments.keys() == other.increments.keys()
            and all(torch.equal(t, other.increments[n]) for n, t in self.increments.items())
        )


def can_share_a_batch(model: nn.Module, config: TrainingConfig) -> bool:
    """Returns True if several clients of a prepared model can be trained in one batch.

    The trained tensors of the model must be such that they can be stacked, and the optimiser must
    compute entry by entry.
    """
    return can_stack(model) and is_entrywise(config)


@dataclass(frozen=True, kw_only=True)
class CohortTrainer:
    """Gives jobs.

    Attributes:
        backbone: A prepared model, the workspace.
        stacks: True if clients are trained in one batch (`can_share_a_batch`).
        config: Hyper-parameters.
        precision: The number format of activations.
    """

    backbone: Backbone
    stacks: bool
    config: TrainingConfig
    precision: torch.dtype

    @functools.cached_property
    def stack(self) -> Stack:
        """The model for many clients, made when it is first needed."""
        return Stack(self.backbone.model)

    def train(self, jobs: Sequence[LocalJob]) -> list[Trained]:
        """Trains clients, all in one batch that can be.

        Returns:
            What came of each.

        Raises:
            ValueError: When a task freezes every tensor.
        """
        found: dict[int, Trained] = {}
        left = list(range(len(jobs)))
        while left:
            first = jobs[left[0]]
            group = [number for number in left if jobs[number].goes_with(first)]
            if not self.stacks or len(group) == 1:
                group = group[:1]
                found[group[0]] = self._alone(first)
            else:
                self._put_base(first)
                trained = train_together(
                    self.stack,
                    [jobs[number] for number in group],
                    config=self.config,
                    precision=self.precision,
                )
                found.update(zip(group, trained, strict=True))
            left = [number for number in left if number not in found]
        return [found[number] for number in range(len(jobs))]

    def _alone(self, job: LocalJob) -> Trained:
        self._put_base(job)
        return train(
            self.backbone,
            job.start,
            job.shard,
            config=self.config,
            task=job.task,
            generator=job.generator,
            precision=self.precision,
        )

    def _put_base(self, job: LocalJob) -> None:
        put_reader(self.backbone.model, job.reader)
        targets.put_increments(self.backbone.model, job.increments)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step of the clients that still have one.

    Attributes:
        images: (B, C, H, W), those of the first client first.
        labels: (B,).
        sizes: b_k of the first clients; the others have done all their steps.
    """

    images: Tensor
    labels: Tensor
    sizes: tuple[int, ...]


def train_together(
    stack: Stack,
    jobs: Sequence[LocalJob],
    *,
    config: TrainingConfig,
    precision: torch.dtype = torch.float32,
) -> list[Trained]:
    """Trains clients in one batch.

    Args:
        stack: The workspace; its frozen tensors are those of the jobs.
        jobs: The jobs, which can share a batch.
        config: Hyper-parameters.
        precision: The number format of activations.

    Returns:
        What came of each.

    Raises:
        ValueError: When the task freezes every tensor, or the optimiser is not entrywise.
    """
    if not is_entrywise(config):
        raise ValueError(f"clients that train with {config.optimizer} cannot share a batch")
    device = stack.device
    size, epochs = config.batch_size, [one.task.epochs_of(config) for one in jobs]
    orders = [
        list(batches_of(len(one.shard), passes, size, one.generator, device))
        for one, passes in zip(jobs, epochs, strict=True)
    ]
    longest_first = sorted(range(len(jobs)), key=lambda number: -len(orders[number]))
    chosen = [jobs[number] for number in longest_first]
    steps = [len(orders[number]) for number in longest_first]
    parameters = stack.load([one.start for one in chosen], [one.reader for one in chosen])
    task = chosen[0].task
    active = active_of(parameters, task.frozen)
    terms = task.all_terms
    anchor = {name: p.detach().clone() for name, p in active.items()} if terms else {}
    drift = {
        name: torch.stack([one.task.drift[name] for one in chosen]).to(device)
        for name in active
        if name in task.drift
    }
    optimizer = make_optimizer(active, config, task.learning_rate)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    losses = torch.zeros(len(chosen), device=device)
    states: list[State] = []  # of those who are done, the last in the order of the stack first
    stack.model.train()
    with resting(parameters[name] for name in task.frozen):
        for batch in _batches(chosen, [orders[number] for number in longest_first], device):
            clients = len(batch.sizes)
            states += _slices(parameters, range(len(chosen) - len(states) - 1, clients - 1, -1))
            stack.seat(batch.sizes)
            with autocast(device, precision):
                logits = unhalved(stack.model(normalize(batch.images)))
            loss, each = cross_entropy(logits, batch.labels, config.label_smoothing, batch.sizes)
            penalized = loss + penalties(terms, active, anchor)
            step(optimizer, scaler, penalized, config.clip_norm, clip_each)
            drift_on(active, drift, task.learning_rate)
            losses[:clients] += each
    states += _slices(parameters, range(len(chosen) - len(states) - 1, -1, -1))
    seen = [epochs[number] * len(jobs[number].shard) for number in longest_first]
    means = [total / max(1, images) for total, images in zip(losses.tolist(), seen, strict=True)]
    trained = {
        number: Trained(state=state, loss=loss, steps=count)
        for number, state, loss, count in zip(
            longest_first, reversed(states), means, steps, strict=True
        )
    }
    return [trained[number] for number in range(len(jobs))]


def _batches(
    jobs: Sequence[LocalJob], orders: Sequence[Sequence[Tensor]], device: torch.device
) -> Iterator[Batch]:
    """Yields the steps of clients side by side; who has most steps comes first."""
    images = [one.shard.images.to(device) for one in jobs]
    labels = [one.shard.labels.to(device) for one in jobs]
    for chosen in itertools.zip_longest(*orders):
        present = [positions for positions in chosen if positions is not None]
        yield Batch(
            images=torch.cat([own[at] for own, at in zip(images, present, strict=False)]),
            labels=torch.cat([own[at] for own, at in zip(labels, present, strict=False)]),
            sizes=tuple(map(len, present)),
        )


def _slices(parameters: dict[str, nn.Parameter], clients: range) -> list[State]:
    """Copies the tensors of some clients out, as `methods.copied_out` does."""
    return [
        methods.copied_out({name: p.detach()[client] for name, p in parameters.items()})
        for client in clients
    ]
