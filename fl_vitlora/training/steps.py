"""Functions for the steps of local training, for one client or for several clients in one batch.

Parameters belong to one client, or they are stacked for K clients, (K, ...). Functions that clip
gradients need to know whether parameters are stacked. All other functions work for both kinds of
parameters, because they compute entry by entry.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fl_vitlora.config import TrainingConfig

Clip = Callable[[Iterable[Tensor], float], object]
TINY = 1e-6  # this is added to a norm before a division, as in `nn.utils.clip_grad_norm_`


@torch.no_grad()
def drift_on(
    parameters: Mapping[str, nn.Parameter], drift: Mapping[str, Tensor], rate: float
) -> None:
    """Adds a strategy's drift to parameters, in place: w ← w + rate · drift.

    Args:
        parameters: The trained tensors.
        drift: For each trained tensor with a drift, by name, the tensor that is multiplied by the
            learning rate and added to the trained tensor.
        rate: The learning rate of the round.
    """
    for name, change in drift.items():
        parameters[name].add_(change, alpha=rate)


def active_of(
    parameters: Mapping[str, nn.Parameter], frozen: frozenset[str]
) -> dict[str, nn.Parameter]:
    """Returns the tensors that are trained in a round.

    Args:
        parameters: All tensors that the fine-tuning method trains, by name.
        frozen: The names of the tensors that do not change in this round.

    Raises:
        ValueError: If all tensors are frozen.
    """
    active = {name: p for name, p in parameters.items() if name not in frozen}
    if not active:
        raise ValueError(
            "the strategy's plan freezes every tensor of the method, so that nothing is trained"
        )
    return active


@contextlib.contextmanager
def resting(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Freezes parameters inside a `with` block: no gradients are computed for them."""
    unmoved = list(parameters)
    try:
        for parameter in unmoved:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in unmoved:
            parameter.requires_grad_()


def step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Tensor,
    clip_norm: float | None,
    clip: Clip,
) -> None:
    """Computes the gradient of a loss, clips it, and lets the optimiser take one step.

    Args:
        optimizer: The optimiser of the trained parameters.
        scaler: PyTorch's scaler of losses in half precision.
        loss: The loss to minimise.
        clip_norm: The largest norm of a gradient; None if gradients are not clipped.
        clip: The function that clips the gradients of parameters: `nn.utils.clip_grad_norm_`, or
            `clip_each` if the parameters are stacked.
    """
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(loss))
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        clip(trained, clip_norm)
    scaler.step(optimizer)
    scaler.update()


@torch.no_grad()
def clip_each(parameters: Iterable[Tensor], clip_norm: float) -> None:
    """Scales the gradient of each client down to a largest norm, in place.

    Args:
        parameters: The stacked parameters, (K, ...), with gradients.
        clip_norm: The largest norm of the gradient of one client.
    """
    gradients = [p.grad.flatten(1) for p in parameters if p.grad is not None]
    squares = torch.stack([g.square().sum(dim=1) for g in gradients]).sum(dim=0)  # (K,)
    factors = (clip_norm / (squares.sqrt() + TINY)).clamp(max=1.0).unsqueeze(1)
    for gradient in gradients:
        gradient.mul_(factors)


def batches_of(
    images: int,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yields, for each step, the positions of its images in the shard.

    Every epoch has a new random order and uses all images.

    Args:
        images: The number of images.
        epochs: The number of passes over the images.
        batch_size: The largest number of images in a step.
        generator: The random generator for the order. The generator is on the CPU, so that the
            order is the same for every device.
        device: The device to which the positions are copied, once in an epoch.
    """
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator).to(device)
        yield from order.tensor_split(math.ceil(images / batch_size))


def steps_of(images: int, config: TrainingConfig) -> int:
    """Returns the number of optimiser steps that a client takes in a round.

    Args:
        images: The number of images of the client.
        config: The hyper-parameters.

    Example:
        >>> steps_of(40, TrainingConfig(epochs=2, batch_size=16))
        6
    """
    return config.epochs * math.ceil(images / config.batch_size)
