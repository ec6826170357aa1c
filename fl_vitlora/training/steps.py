"""The pieces of local training, for one client or for several at once.

Parameters may be one client's, or stacked, (K, ...) for K clients: all but the clipping computes
entry by entry, so that it is the same for both.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from fl_vitlora.config import TrainingConfig

Clip = Callable[[Iterable[Tensor], float], object]
TINY = 1e-6  # added to a norm, as `nn.utils.clip_grad_norm_` does


@torch.no_grad()
def drift_on(
    parameters: Mapping[str, nn.Parameter], drift: Mapping[str, Tensor], rate: float
) -> None:
    """Moves parameters by what a strategy adds to every step, in place."""
    for name, change in drift.items():
        parameters[name].add_(change, alpha=rate)


def active_of(
    parameters: Mapping[str, nn.Parameter], frozen: frozenset[str]
) -> dict[str, nn.Parameter]:
    """Returns what is trained in a round.

    Raises:
        ValueError: When that is nothing.
    """
    active = {name: p for name, p in parameters.items() if name not in frozen}
    if not active:
        raise ValueError("the strategy's plan freezes every tensor; nothing is left to train")
    return active


@contextlib.contextmanager
def resting(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Spares the gradients of some parameters for a while."""
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
    """Takes one step down the gradient of a loss.

    Args:
        optimizer: The optimiser of the trained parameters.
        scaler: The scaler of losses in half precision.
        loss: The loss to descend.
        clip_norm: The largest norm of a gradient, if it is bounded.
        clip: Bounds it; `clip_each` where parameters are stacked.
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
    """Bounds the norm of each client's gradient by itself, in place.

    Args:
        parameters: (K, ...), with gradients.
        clip_norm: The bound.
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
    """Yields the positions of each step; every epoch in a new order, all images used.

    Args:
        images: n.
        epochs: Passes over the images.
        batch_size: Most images of a step.
        generator: The generator of the order, on the CPU, so that it is the same on every device.
        device: The device of the positions; they are copied there once an epoch.
    """
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator).to(device)
        yield from order.tensor_split(math.ceil(images / batch_size))


def steps_of(images: int, config: TrainingConfig) -> int:
    """Counts the optimiser steps of a round; they follow from the images and the plan alone.

    Example:
        >>> steps_of(40, TrainingConfig(epochs=2, batch_size=16))
        6
    """
    return config.epochs * math.ceil(images / config.batch_size)


def unhalved(logits: Tensor) -> Tensor:
    """Returns logits in float32 where they are in half of it; others stay as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def autocast(
    device: torch.device, precision: torch.dtype, *, cached: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which activations are computed in another precision, if one is asked.

    Args:
        device: The device that computes.
        precision: The number format of activations; nothing changes for float32.
        cached: True if a weight is converted only once inside the context. This is wrong where
            weights change inside it.
    """
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision, cache_enabled=cached)
