"""The worker processes of a simulation: their number, device and share of the machine."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.ray_environment import check_address

WORKERS_PER_GPU = 4  # most workers that share a GPU if the user does not set their number


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The settings of the worker processes that train the clients.

    Attributes:
        device: The device on which the workers compute, "cpu" or "cuda".
        count: Number of worker processes.
        gpus: Number of GPUs that the workers share.
        address: Address of the Ray cluster on which the workers run; empty if this program starts
            Ray.
    """

    device: str
    count: int
    gpus: int = 0
    address: str = ""

    @property
    def per_gpu(self) -> int:
        """Returns the largest number of workers that share one GPU. On the CPU the number is 0."""
        return math.ceil(self.count / self.gpus) if self.gpus else 0

    @property
    def resources(self) -> dict[str, int | float]:
        """Returns the share of the machine that each worker takes, in Ray's units.

        The share of a GPU is one divided by a whole number, so that every worker finds a place. If
        each of five workers took two fifths of a GPU, two GPUs would have room for four workers.
        The fifth worker would wait for ever.

        Example:
            >>> Workers(device="cuda", count=3, gpus=2).resources
            {'num_cpus': 1, 'num_gpus': 0.5}
        """
        return {"num_cpus": 1, "num_gpus": 1 / self.per_gpu if self.gpus else 0}


def choose_workers(device: str, count: int | None, most: int, address: str = "") -> Workers:
    """Chooses the device and the number of workers for this machine or for a cluster.

    Args:
        device: The wanted device: "cpu", "cuda", or "auto" for a GPU if there is one.
        count: Number of workers. If `count` is None, there is one worker per CPU core, or four per
            GPU. If the memory of the GPU is too small, fewer workers are used
            (`fl_vitlora.experiment.gpu_sharing`).
        most: Largest number of workers that can be busy at once, which is the number of bundles of
            clients in a round.
        address: Address of a Ray cluster, or empty. The cores and GPUs of a cluster are unknown
            before this program joins it.

    Returns:
        The settings of the workers.

    Raises:
        UserError: If the device is "cuda" and there is no GPU, if the cluster does not answer, or
            if a cluster is named without a number of workers.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not gpus:
        raise UserError("engine.device cuda: PyTorch finds no GPU here; use --device cpu")
    if address:
        if count is None:
            raise UserError(
                f"engine.ray_address {address}: set the number of workers on this cluster, for "
                "example --workers 16"
            )
        check_address(address)
        busy = min(most, count)
        if device == "cpu" or not gpus:
            return Workers(device="cpu", count=busy, address=address)
        taken = math.ceil(busy / WORKERS_PER_GPU)
        return Workers(device="cuda", count=busy, gpus=taken, address=address)
    if device == "cpu" or not gpus:
        return Workers(device="cpu", count=min(most, count or cores()))
    gpus = min(gpus, most)
    return Workers(device="cuda", count=min(most, count or WORKERS_PER_GPU * gpus), gpus=gpus)


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def cores_left_to(workers: Workers) -> Iterator[None]:
    """Limits PyTorch in this process to the CPU cores that workers do not use, but at least one.

    The limit is active inside the block, and only if the workers compute on the CPU.
    """
    import torch

    before = torch.get_num_threads()
    if workers.device == "cpu":
        torch.set_num_threads(max(1, cores() - workers.count))
    try:
        yield
    finally:
        torch.set_num_threads(before)
