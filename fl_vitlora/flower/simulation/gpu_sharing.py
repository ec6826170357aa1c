"""How many workers share a GPU: those that its memory holds, where nobody said a number.

Ray is started for the most there can be, before there is a model to measure. All GPUs are taken to
be like the first, the fullest of them, as this process computes on it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fl_vitlora.config import Config
from fl_vitlora.data.shards import CLIENT_SHARDS
from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.engine import Ray, Workers
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.population.sampling import cohort_size, trained_together
from fl_vitlora.training.gpu_memory import Memory, measure, workers_that_fit
from fl_vitlora.training.stacking import can_stack


def workers_in_memory(
    workers: Workers, config: Config, backbone: Backbone, shards: Path, ray: Ray
) -> Workers:
    """Takes as many of the workers as the GPUs hold; on the CPU, or where a number was said, all.

    Args:
        workers: Those that Ray was started for.
        config: The experiment.
        backbone: The server's model on its device, like those of the workers; left as it was.
        shards: Folder of those that workers open.
        ray: Remembers what was measured, for the next run that asks the same.

    Returns:
        The workers to use.

    Raises:
        UserError: When the memory does not hold one.
    """
    if workers.device != "cuda" or config.engine.workers is not None:
        return workers
    together = min(trained_together(config), cohort_size(config.clients, config.fraction))
    clients = together if can_stack(backbone.model) else 1
    asked = (config.model, config.training, config.engine, clients, _shapes(backbone))
    if ray.measured is None or ray.measured[0] != asked:
        ray.end_actors()  # a worker left by the run before would be measured as another program
        ray.measured = asked, _measure(backbone, config, clients)
    sizes = sorted(path.stat().st_size for path in shards.glob(CLIENT_SHARDS))
    return held(workers, ray.measured[1], sum(sizes[-clients:]))  # they lie on the GPU whole


def held(workers: Workers, memory: Memory, shards: int) -> Workers:
    """Takes as many of the workers as GPUs of some memory hold.

    Args:
        workers: Those that are wanted.
        memory: What was measured.
        shards: Bytes of images that each has open.

    Returns:
        The workers, one a GPU at least.
    """
    most = workers.a_gpu
    each = workers_that_fit(memory.free, memory.context, memory.step + shards, most)
    return replace(workers, count=min(workers.count, each * workers.gpus))


def _measure(backbone: Backbone, config: Config, clients: int) -> Memory:
    try:
        return measure(backbone, config, clients)
    except torch.OutOfMemoryError:
        images = config.training.batch_size
        fewer = (
            f"--cohort {clients // 2}"
            if clients > 1
            else f"--set training.batch_size={max(1, images // 2)}"
        )
        raise UserError(
            f"engine.device cuda: the GPU's memory does not hold a step of {clients} × {images} "
            f"images (clients × training.batch_size); take fewer: {fewer}"
        ) from None


def _shapes(backbone: Backbone) -> dict[str, tuple[torch.Size, bool]]:
    """Tells the shape of every tensor of a model, and whether it is trained."""
    return {name: (p.shape, p.requires_grad) for name, p in backbone.model.named_parameters()}
