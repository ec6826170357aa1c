"""Measures the GPU memory that a worker needs, by doing the largest task of a worker once.

A worker is a process that trains clients. On a GPU a worker needs memory for its tensors. A worker
also needs memory for the kernels and tables of its libraries, called the context, which PyTorch
does not count. To measure the memory of the tensors, this process trains for a few steps as a
worker would. The context is the used memory of the GPU that belongs to no tensor. On the CPU the
steps are taken as well, but all measured sizes are zero.
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
    evaluate,
)
from fl_vitlora.training.precision import best_precision
from fl_vitlora.training.prediction import predictor_of

MARGIN = 0.1  # share that stays free for fragmentation and for tensors of a strategy
CONTEXT_AT_MOST = 2**31  # bytes; memory beyond this size belongs to another program on the GPU
STEPS = 2  # the second step also holds the optimiser's state and the gradients of the first step


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The measured memory of a GPU, in bytes. On the CPU all sizes are zero.

    Attributes:
        free: The memory that workers can use while this process evaluates at the same time.
        context: The memory that a process needs in addition to its tensors.
        step: The largest memory of a worker's tensors. The memory of the clients' images is not
            included.
    """

    free: int
    context: int
    step: int


def workers_that_fit(free: int, context: int, step: int, most: int) -> int:
    """Returns how many workers fit on a GPU if the share `MARGIN` of its memory stays free.

    Args:
        free: The memory that workers can use, in bytes.
        context: The memory that each worker needs in addition to its tensors, in bytes.
        step: The largest memory of a worker's tensors, in bytes.
        most: The largest number of workers that is allowed.

    Returns:
        The number of workers, at least one.

    Example:
        >>> GiB = 2**30
        >>> [workers_that_fit(free * GiB, GiB // 2, 4 * GiB, most=4) for free in (3, 14, 79)]
        [1, 2, 4]
    """
    return max(1, min(most, int(free * (1 - MARGIN) // max(1, context + step))))


def measure(backbone: Backbone, config: Config, clients: int) -> Memory:
    """Trains like a worker, evaluates one batch, and measures the memory of these two tasks.

    Args:
        backbone: A model with the fine-tuning method, on the device. At the end the tensors of
            `backbone` have the same values as at the beginning.
        config: The configuration of the experiment.
        clients: The number of clients that a worker trains in one batch.

    Returns:
        The free memory of the GPU, and the memory that a worker needs.

    Raises:
        torch.OutOfMemoryError: If the memory is too small for one worker.
    """
    device = next(backbone.model.parameters()).device
    with left_as_it_was(backbone.model):
        training, evaluation = _peaks(backbone, config, clients)
    free, context = at_rest(device)
    return Memory(free=free - evaluation, context=context, step=max(training, evaluation))


def make_trainer(backbone: Backbone, config: Config) -> CohortTrainer:
    """Creates the object with which a worker trains clients, for one epoch in a round."""
    device = next(backbone.model.parameters()).device
    return CohortTrainer(
        backbone=backbone,
        stacks=can_share_a_batch(backbone.model, config.training),
        config=replace(config.training, epochs=1),
        precision=best_precision(device, config.engine.precision),
    )


def take_steps(trainer: CohortTrainer, clients: int) -> list[Trained]:
    """Trains clients for `STEPS` steps, on full batches of black images."""
    start, reader = methods.export_state(trainer.backbone.model), reader_of(trainer.backbone)
    shard = black(trainer.backbone, STEPS * trainer.config.batch_size)
    task = LocalTask(learning_rate=trainer.config.learning_rate)
    jobs = [
        LocalJob(start=start, shard=shard, task=task, generator=torch.Generator(), reader=reader)
        for _ in range(clients)
    ]
    return trainer.train(jobs)


def black(backbone: Backbone, images: int) -> Shard:
    """Returns a shard of black images in the size that the model takes."""
    return Shard(
        images=torch.zeros(images, *backbone.image_shape, dtype=torch.uint8),
        labels=torch.zeros(images, dtype=torch.int64),
    )


@contextmanager
def left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Restores the tensors and the mode of a model at the end of a `with` block, bit for bit.

    Args:
        model: A model whose parameters have no gradients. The code in the block may train the
            model.
    """
    before = {name: t.to("cpu", copy=True) for name, t in model.state_dict().items()}
    training = model.training
    try:
        yield
    finally:
        model.load_state_dict(before)
        model.zero_grad(set_to_none=True)
        model.train(training)


def peak(device: torch.device, work: Callable[[], object]) -> int:
    """Returns the largest number of bytes that PyTorch reserves on a GPU while a function runs.

    Tensors that existed before the call are counted as well.

    Args:
        device: The device that the function uses. On the CPU the measured memory is 0.
        work: The function, which is called once.
    """
    if device.type != "cuda":
        work()
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_reserved(device)


def at_rest(device: torch.device) -> tuple[int, int]:
    """Releases the memory that PyTorch has reserved but does not use for a tensor.

    Returns:
        A pair: the free memory of the GPU, and the memory of this process's context, in bytes.
    """
    gc.collect()  # a stack of clients refers to itself, so only the collector frees it
    if device.type != "cuda":
        return 0, 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return free, min(total - free - torch.cuda.memory_reserved(device), CONTEXT_AT_MOST)


def _peaks(backbone: Backbone, config: Config, clients: int) -> tuple[int, int]:
    """Returns the largest memory of training, and of an evaluation after the training, in bytes."""
    trainer, predictor = make_trainer(backbone, config), predictor_of(config.evaluation.predictor)
    device = next(backbone.model.parameters()).device
    state = methods.export_state(backbone.model)
    shard = black(backbone, EVALUATION_BATCH[device.type])
    return (
        peak(device, lambda: take_steps(trainer, clients)),
        peak(device, lambda: evaluate(backbone, state, shard, trainer.precision, predictor)),
    )
