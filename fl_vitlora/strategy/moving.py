"""The arithmetic that most strategies need: shares of images, and a model moved by a mean."""

from __future__ import annotations

from collections.abc import Sequence

from fl_vitlora.state import State, mean, scale
from fl_vitlora.strategy.values import Update


def shares(updates: Sequence[Update]) -> list[float]:
    """Returns pₖ = nₖ / Σn.

    Example:
        >>> shares([Update(client=k, samples=n, loss=0.0, delta={}) for k, n in ((0, 3), (1, 1))])
        [0.75, 0.25]
    """
    total = sum(update.samples for update in updates)
    return [update.samples / total for update in updates]


def averaged(model: State, updates: Sequence[Update], rate: float = 1.0) -> State:
    """Moves a model by the mean delta, weighted by samples; what no client trained stays.

    Args:
        model: The global tensors that the round began with.
        updates: At least one update; all have the same tensors.
        rate: Factor on the mean.

    Returns:
        A new model.

    Example:
        >>> import torch
        >>> update = Update(client=0, samples=3, loss=0.0, delta={"b": torch.tensor([2.0])})
        >>> averaged({"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}, [update], rate=0.5)
        {'a': tensor([1.]), 'b': tensor([2.])}
    """
    return moved(model, scale(mean([u.delta for u in updates], [u.samples for u in updates]), rate))


def moved(model: State, step: State) -> State:
    """Adds a step to a model; what the step leaves out stays.

    Args:
        model: The global tensors that the round began with.
        step: Some of them, in any type.

    Returns:
        A new model, in the old one's types.
    """
    return {n: w + step[n].to(w.dtype) if n in step else w.clone() for n, w in model.items()}
