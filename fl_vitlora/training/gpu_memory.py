"""The memory of a GPU that a worker needs: what it does at most is done here once, and measured.

A process that computes on a GPU holds its tensors, and beside them what PyTorch does not count, the
kernels and tables of its libraries. The tensors are those of a worker's steps, taken by the same
code; the rest is what is in use on the GPU and no tensor. On the CPU the steps are taken all the
same, and nothing is read.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.training.cohort import CohortTrainer, LocalJob, can_share_a_batch
from fl_vitlora.training.local import (
    EVALUATION_BATCH,
    LocalTask,
    Trained,
    best_precision,
    evaluate,
)
from fl_vitlora.training.prediction import predictor_of

MARGIN = 0.1  # of what is free: pieces too small to use, and what a strategy adds to a step
CONTEXT_AT_MOST = 2**31  # bytes; what is more is another program's, which shares the GPU
STEPS = 2  # in the second, the optimiser's memory and the first gradients lie beside activations


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a GPU's memory; zeros on the CPU.

    Attributes:
        free: Left to workers once this process, which evaluates beside them, has what it needs.
        context: The bytes of a process beside its tensors.
        step: The most bytes of a worker's tensors, without the shards that it has open.
    """

    free: int
    context: int
    step: int


def workers_that_fit(free: int, context: int, step: int, most: int) -> int:
    """Counts the processes that a GPU's memory holds, `MARGIN` of it kept free.

    Args:
        free: Bytes left to them.
        context: Bytes of each, beside its tensors.
        step: Bytes of its tensors at most.
        most: The number of processes that are wanted.

    Returns:
        Their number, at least one.

    Example:
        >>> GiB = 2**30
        >>> [workers_that_fit(free * GiB, GiB // 2, 4 * GiB, most=4) for free in (3, 14, 79)]
        [1, 2, 4]
    """
    return max(1, min(most, int(free * (1 - MARGIN) // max(1, context + step))))


def measure(backbone: Backbone, config: Config, clients: int) -> Memory:
    """Takes a worker's steps and evaluates a batch, and tells the memory of both.

    Args:
        backbone: A prepared model on the device; it is left as it was.
        config: The experiment.
        clients: Trained in one batch.

    Returns:
        What was found.

    Raises:
        torch.OutOfMemoryError: When one worker is too many.
    """
    device = next(backbone.model.parameters()).device
    with left_as_it_was(backbone.model):
        training, evaluation = _peaks(backbone, config, clients)
    free, context = at_rest(device)
    return Memory(free=free - evaluation, context=context, step=max(training, evaluation))


def make_trainer(backbone: Backbone, config: Config) -> CohortTrainer:
    """Makes the trainer that workers have, for one epoch."""
    device = next(backbone.model.parameters()).device
    return CohortTrainer(
        backbone=backbone,
        stacks=can_share_a_batch(backbone.model, config.training),
        config=replace(config.training, epochs=1),
        precision=best_precision(device, config.engine.mixed_precision),
    )


def take_steps(trainer: CohortTrainer, clients: int) -> list[Trained]:
    """Trains clients for `STEPS` steps of full batches, of black images."""
    start, reader = methods.export_state(trainer.backbone.model), reader_of(trainer.backbone)
    shard = black(trainer.backbone, STEPS * trainer.config.batch_size)
    task = LocalTask(learning_rate=trainer.config.learning_rate)
    jobs = [
        LocalJob(start=start, shard=shard, task=task, generator=torch.Generator(), reader=reader)
        for _ in range(clients)
    ]
    return trainer.train(jobs)


def black(backbone: Backbone, images: int) -> Shard:
    """Makes up a shard."""
    return Shard(
        images=torch.zeros(images, *backbone.image_shape, dtype=torch.uint8),
        labels=torch.zeros(images, dtype=torch.int64),
    )


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Lets a model without gradients be trained for a while; then it is what it was, to the bit."""
    before = {name: t.to("cpu", copy=True) for name, t in model.state_dict().items()}
    training = model.training
    try:
        yield
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
        model.train(training)


def peak(device: torch.device, work: Callable[[], object]) -> int:
    """Does something, and tells the bytes that PyTorch reserved at most, a model's among them."""
    if device.type != "cuda":
        work()
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_reserved(device)


def at_rest(device: torch.device) -> tuple[int, int]:
    """Gives back what is reserved for no tensor.

    Returns:
        The bytes that are free then, and those of this process's context.
    """
    gc.collect()  # a stack of clients refers to itself
    if device.type != "cuda":
        return 0, 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return free, min(total - free - torch.cuda.memory_reserved(device), CONTEXT_AT_MOST)


def _peaks(backbone: Backbone, config: Config, clients: int) -> tuple[int, int]:
    """Returns the most bytes of training, and of an evaluation after it."""
    trainer, predictor = make_trainer(backbone, config), predictor_of(config.evaluation.predictor)
    device = next(backbone.model.parameters()).device
    state = methods.export_state(backbone.model)
    shard = black(backbone, EVALUATION_BATCH[device.type])
    return (
        peak(device, lambda: take_steps(trainer, clients)),
        peak(device, lambda: evaluate(backbone, state, shard, trainer.precision, predictor)),
    )
