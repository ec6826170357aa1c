"""Chooses the number of worker processes that share a GPU, unless the user sets the number.

The number is the largest number of workers whose memory fits. Ray starts before the model is built
and before memory is measured. Therefore Ray starts with room for the largest possible number of
workers. The program assumes that all GPUs are like the first GPU. The first GPU has the least free
memory, because this process also computes on the first GPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from fl_vitlora.config import Config
from fl_vitlora.data.shards import CLIENT_SHARDS
from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.population.sampling import cohort_size, trained_together
from fl_vitlora.training.cohort import can_share_a_batch
from fl_vitlora.training.gpu_memory import Memory, measure, workers_that_fit


def workers_in_memory(
    workers: Workers, config: Config, backbone: Backbone, shards: Path, ray: Ray
) -> Workers:
    """Limits the number of workers so that all workers fit into the memory of the GPUs.

    On the CPU, or if the user has set the number of workers, the number does not change.

    Args:
        workers: The workers for which Ray was started.
        config: The configuration of the experiment.
        backbone: The server's model on its device, which is not changed. The model of a worker
            needs as much memory as the server's model.
        shards: The folder with the shards (the files with the clients' encrypted images).
        ray: The running Ray, which stores the measurement for the next run with equal settings.

    Returns:
        The number of workers that are used, with their device and GPUs.

    Raises:
        UserError: If the memory is too small for a single worker.
    """
    if workers.device != "cuda" or config.engine.workers is not None:
        return workers
    together = min(trained_together(config), cohort_size(config.clients, config.fraction))
    clients = together if can_share_a_batch(backbone.model, config.training) else 1
    own = (config.model, config.training, config.evaluation, config.engine)
    settings = (*own, clients, _shapes(backbone))
    if ray.measured is None or ray.measured[0] != settings:
        ray.end_actors()  # otherwise old workers would count as other programs in memory
        ray.measured = settings, _measure(backbone, config, clients)
    sizes = sorted(path.stat().st_size for path in shards.glob(CLIENT_SHARDS))
    return held(workers, ray.measured[1], sum(sizes[-clients:]))  # whole shards are on the GPU


def held(workers: Workers, memory: Memory, shards: int) -> Workers:
    """Limits the number of workers so that all workers fit into the measured memory.

    Args:
        workers: The largest number of workers, with their device and GPUs.
        memory: The measured memory of a GPU.
        shards: The size in bytes of the images that each worker keeps in memory.

    Returns:
        The number of workers that are used, with their device and GPUs. There is at least one
        worker for each GPU.
    """
    most = workers.per_gpu
    each = workers_that_fit(memory.free, memory.context, memory.step + shards, most)
    return replace(workers, count=min(workers.count, each * workers.gpus))


def _measure(backbone: Backbone, config: Config, clients: int) -> Memory:
    """Measures the GPU memory that one training step of a worker needs.

    If the GPU has too little memory, the error names smaller settings.
    """
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
            f"engine.device cuda: the memory of the GPU is too small for a step of {clients} × "
            f"{images} images (clients × training.batch_size); use fewer images: {fewer}"
        ) from None


def _shapes(backbone: Backbone) -> dict[str, tuple[torch.Size, bool]]:
    """Returns, for the name of each tensor, a pair: its shape, and True if it is trained."""
    return {name: (p.shape, p.requires_grad) for name, p in backbone.model.named_parameters()}
