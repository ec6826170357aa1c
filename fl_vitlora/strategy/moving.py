"""The arithmetic of many strategies: shares of images, steps of the model, FedProx's penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.state import State, mean, scale
from fl_vitlora.strategy.values import Update


def shares(updates: Sequence[Update]) -> list[float]:
    """Returns the share pₖ = nₖ / Σn of each update, where nₖ is its number of images.

    Example:
        >>> shares([Update(client=k, samples=n, loss=0.0, delta={}) for k, n in ((0, 3), (1, 1))])
        [0.75, 0.25]
    """
    total = sum(update.samples for update in updates)
    return [update.samples / total for update in updates]


def averaged(model: State, updates: Sequence[Update], rate: float = 1.0) -> State:
    """Adds the mean of the clients' deltas, weighted by their numbers of images, to a model.

    Tensors that no client trained do not change.

    Args:
        model: The global tensors at the beginning of the round.
        updates: At least one update. The deltas of all updates must have the same names.
        rate: The factor by which the mean is multiplied.

    Returns:
        A dictionary: the tensors of the new model, by name.

    Example:
        >>> import torch
        >>> update = Update(client=0, samples=3, loss=0.0, delta={"b": torch.tensor([2.0])})
        >>> averaged({"a": torch.tensor([1.0]), "b": torch.tensor([1.0])}, [update], rate=0.5)
        {'a': tensor([1.]), 'b': tensor([2.])}
    """
    return moved(model, scale(mean([u.delta for u in updates], [u.samples for u in updates]), rate))


def moved(model: State, step: State) -> State:
    """Adds a step (changes of some tensors) to a model.

    Tensors that the step does not contain do not change.

    Args:
        model: The global tensors at the beginning of the round.
        step: The changes of some tensors, by name, of any data type.

    Returns:
        A dictionary: the tensors of the new model, with the data types of the old model.
    """
    return {n: w + step[n].to(w.dtype) if n in step else w.clone() for n, w in model.items()}


def proximal(mu: float, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """Returns FedProx's penalty μ/2 · ‖w - w_global‖² (arXiv 1812.06127), which a client adds.

    Args:
        mu: The weight μ, not negative.
        parameters: The tensors w that the client trains, by name.
        anchor: The values w_global that these tensors had when training began.

    Example:
        >>> proximal(2.0, {"a": torch.tensor([3.0, 1.0])}, {"a": torch.tensor([1.0, 1.0])})
        tensor(4.)
    """
    squares = [(p - anchor[name]).square().sum() for name, p in parameters.items()]
    return mu / 2 * torch.stack(squares).sum()
