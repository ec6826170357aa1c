"""Trains many clients in one batch; each client learns the same as if it were trained alone.

The trained tensors of the clients are stacked, and the frozen tensors are shared
(`training.stacking`). The loss is the sum of the clients' losses. Therefore each client's part of a
stacked tensor gets only the gradient of this client. The optimiser computes entry by entry, and
gradients are clipped client by client. A client that has taken all its steps is removed from the
batch, and the other clients continue.

In this way every client ends with the tensors that it would have if it were trained alone. Training
in one batch and training alone differ only by rounding, because sums are computed in another order.
There is one exception: in float16, if a step overflows for one client, all clients skip this step.

Letters in shapes: B images in a step, K clients, b_k images of client k, C channels, height H,
width W.
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
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader
from fl_vitlora.state import State
from fl_vitlora.training.descent import Descent, begin
from fl_vitlora.training.inputs import Inputs, frozen_of, inputs_of, set_mode
from fl_vitlora.training.local import LocalTask, Trained, train
from fl_vitlora.training.optimizers import is_entrywise
from fl_vitlora.training.stacking import Stack, can_stack
from fl_vitlora.training.steps import active_of, batches_of, resting


@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """The input of one client's training in one round, in addition to the hyper-parameters.

    Attributes:
        start: The initial values of all trained tensors.
        shard: The images of the client.
        task: The settings of the training that can differ between rounds, such as the rate.
        generator: The random generator for the order of the images, on the CPU.
        reader: The frozen patch embedding and position embedding of the client, which may be
            adapted to its key.
        increments: The sums that the server has added to frozen weights in earlier rounds, by the
            paths of the low-rank pairs on these weights (`LoRALinear.put_increments`).
    """

    start: State
    shard: Shard
    task: LocalTask
    generator: torch.Generator
    reader: PatchReader
    increments: State = field(default_factory=dict)

    def goes_with(self, other: LocalJob) -> bool:
        """Returns True if this client and the client of `other` can be trained in one batch."""
        mine, theirs = self.task, other.task
        return (
            mine.learning_rate == theirs.learning_rate
            and mine.terms == theirs.terms
            and mine.frozen == theirs.frozen
            and mine.drift.keys() == theirs.drift.keys()
            and self.increments.keys() == other.increments.keys()
            and all(torch.equal(t, other.increments[n]) for n, t in self.increments.items())
        )


def can_share_a_batch(model: nn.Module, config: TrainingConfig) -> bool:
    """Returns True if several clients of a prepared model can be trained in one batch.

    Two conditions must hold: the trained tensors of several clients can be stacked, and the
    optimiser computes entry by entry.
    """
    return can_stack(model) and is_entrywise(config)


def why_alone(model: nn.Module, config: TrainingConfig) -> str:
    """Returns the reason why several clients cannot share a batch, as the end of a sentence.

    Args:
        model: A prepared model.
        config: The hyper-parameters of the training.

    Returns:
        The obstacle: parts of the method that are not stackable, the optimiser, or the model; an
        empty text if the clients can be trained in one batch.
    """
    if can_share_a_batch(model, config):
        return ""
    told = methods.prepared(model)
    parts = () if told is None else told.method.parts
    if alone := [name for name, part in parts if not part.stackable]:
        return f"{' and '.join(alone)} cannot train several clients in one batch"
    if not is_entrywise(config):
        return f"the optimiser {config.optimizer} does not compute entry by entry"
    return f"the tensors of {type(model).__name__} cannot be stacked for several clients"


@dataclass(frozen=True, kw_only=True)
class CohortTrainer:
    """Trains clients, and several clients in one batch if that is possible.

    In a round in which the clients only measure (`Method.only_measures`), no clients share a batch.

    Attributes:
        backbone: A model with the fine-tuning method. The tensors of each client are copied into
            this model.
        stacks: True if several clients may be trained in one batch (`can_share_a_batch`).
        config: The hyper-parameters of local training.
        precision: The number format of activations: float32, bfloat16 or float16.
    """

    backbone: Backbone
    stacks: bool
    config: TrainingConfig
    precision: torch.dtype

    @functools.cached_property
    def stack(self) -> Stack:
        """Returns the model that trains several clients in one batch; the first call makes it."""
        return Stack(self.backbone.model)

    def train(self, jobs: Sequence[LocalJob]) -> list[Trained]:
        """Trains clients; clients that can share a batch are trained in one batch.

        Args:
            jobs: For each client, its images, initial tensors and settings of the round.

        Returns:
            The result of each client, in the order of the jobs.

        Raises:
            ValueError: If a task freezes every tensor.
        """
        found: dict[int, Trained] = {}
        left = list(range(len(jobs)))
        while left:
            first = jobs[left[0]]
            group = [number for number in left if jobs[number].goes_with(first)]
            if not self.stacks or len(group) == 1 or self._only_measures(first):
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

    def _only_measures(self, job: LocalJob) -> bool:
        told = methods.prepared(self.backbone.model)
        active = job.start.keys() - job.task.frozen
        return told is not None and told.method.only_measures(active)

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
class Plan:
    """The steps of one client, when several clients are trained in one batch.

    Attributes:
        number: The position of the client in the list of jobs.
        job: The images, initial tensors and settings of the client.
        order: For each step, a tensor (b,) with the positions of its b images in the shard.
        images: The number of images of all steps together.
    """

    number: int
    job: LocalJob
    order: Sequence[Tensor]
    images: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of one step, for all clients that still have steps to take.

    Attributes:
        inputs: The images, (B, C, H, W), or their features, (B, ...). The inputs of the first
            client come first.
        labels: The numbers of the images' true classes, (B,).
        sizes: The number of images b_k of each client that is still training. Clients that have
            finished have no number in `sizes`; their tensors are the last ones along the dimension
            of the clients.
    """

    inputs: Tensor
    labels: Tensor
    sizes: tuple[int, ...]


def train_together(
    stack: Stack,
    jobs: Sequence[LocalJob],
    *,
    config: TrainingConfig,
    precision: torch.dtype = torch.float32,
) -> list[Trained]:
    """Trains several clients in one batch.

    Args:
        stack: The model for many clients. The frozen tensors of this model must be the frozen
            tensors of the jobs.
        jobs: The jobs of clients that can share a batch (`LocalJob.goes_with`).
        config: The hyper-parameters of local training.
        precision: The number format of activations: float32, bfloat16 or float16.

    Returns:
        The result of each client, in the order of the jobs.

    Raises:
        ValueError: If the task freezes every tensor, or if the optimiser does not compute entry by
            entry.
    """
    if not is_entrywise(config):
        raise ValueError(
            f"clients that train with {config.optimizer} cannot share a batch, because this "
            "optimiser does not compute entry by entry; train the clients one by one"
        )
    plans = _longest_first(jobs, config, stack.device)
    chosen = [plan.job for plan in plans]
    parameters = stack.load([job.start for job in chosen], [job.reader for job in chosen])
    frozen = frozen_of(stack.original)
    descent = _begin(stack, parameters, chosen, config, precision)
    losses = torch.zeros(len(plans), device=stack.device)
    states: list[State] = []  # finished clients; the last client of the stack comes first
    set_mode(stack.model, frozen)
    inputs = [inputs_of(j.shard, frozen, stack.device, precision, j.reader) for j in chosen]
    with resting(parameters[name] for name in chosen[0].task.frozen):
        for batch in _batches(plans, inputs, stack.device):
            clients = len(batch.sizes)
            states += _slices(parameters, range(clients, len(plans) - len(states)))
            stack.set_batch_sizes(batch.sizes)
            losses[:clients] += descent.step(batch.inputs, batch.labels, batch.sizes)
    states += _slices(parameters, range(len(plans) - len(states)))
    return _trained(plans, states[::-1], losses.tolist())


def _longest_first(
    jobs: Sequence[LocalJob], config: TrainingConfig, device: torch.device
) -> list[Plan]:
    """Returns the plan of each client. The client with the most steps comes first."""
    plans = []
    for number, job in enumerate(jobs):
        images, epochs = len(job.shard), job.task.epochs_of(config)
        order = list(batches_of(images, epochs, config.batch_size, job.generator, device))
        plans.append(Plan(number=number, job=job, order=order, images=epochs * images))
    return sorted(plans, key=lambda plan: -len(plan.order))


def _begin(
    stack: Stack,
    parameters: dict[str, nn.Parameter],
    jobs: Sequence[LocalJob],
    config: TrainingConfig,
    precision: torch.dtype,
) -> Descent:
    """Prepares the steps of stacked clients, which have the same task in this round."""
    task = jobs[0].task
    drift = {name: torch.stack([job.task.drift[name] for job in jobs]) for name in task.drift}
    return begin(
        stack.model,
        active_of(parameters, task.frozen),
        config=config,
        rate=task.learning_rate,
        terms=task.terms,
        drift=drift,
        precision=precision,
        frozen=frozen_of(stack.original),
    )


def _batches(
    plans: Sequence[Plan], inputs: Sequence[Inputs], device: torch.device
) -> Iterator[Batch]:
    """Yields the batch of each step. The images of the client with the most steps come first."""
    labels = [plan.job.shard.labels.to(device) for plan in plans]
    for chosen in itertools.zip_longest(*(plan.order for plan in plans)):
        present = [positions for positions in chosen if positions is not None]
        yield Batch(
            inputs=torch.cat([own(at) for own, at in zip(inputs, present, strict=False)]),
            labels=torch.cat([own[at] for own, at in zip(labels, present, strict=False)]),
            sizes=tuple(map(len, present)),
        )


def _slices(parameters: dict[str, nn.Parameter], clients: range) -> list[State]:
    """Returns copies of the tensors of some clients. The copies of the last client come first."""
    return [
        methods.copied_out({name: p.detach()[client] for name, p in parameters.items()})
        for client in reversed(clients)
    ]


def _trained(
    plans: Sequence[Plan], states: Sequence[State], losses: Sequence[float]
) -> list[Trained]:
    """Returns the results of all clients in the order of the jobs.

    Args:
        plans: The clients in the order of the stack.
        states: The trained tensors of each client.
        losses: The total loss of each client over the images of all steps.
    """
    found = {
        plan.number: Trained(state=state, loss=total / max(1, plan.images), steps=len(plan.order))
        for plan, state, total in zip(plans, states, losses, strict=True)
    }
    return [found[number] for number in range(len(plans))]
