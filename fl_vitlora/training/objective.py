"""The local objective: the loss that a client minimises.

    loss = cross-entropy (with label smoothing) + the terms of the round

A term is a function of the trained tensors and of the values that these tensors had when training
began. For example, a strategy may add a penalty. If K clients are trained in one batch, their
tensors are stacked, (K, ...). A term must be a sum over the entries of the tensors. Then the value
of the term for K stacked clients is the sum of its values for the single clients, and each client
gets the same gradient as if it were trained alone.

Letters in shapes: B images in a step, L classes of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part
from fl_vitlora.strategy import Strategy, proximal


class Term(Protocol):
    """A term that is added to the local loss.

    Clients share a batch only if their terms are equal (`==`), so a term should be a frozen
    dataclass.

    Example:
        >>> @dataclass(frozen=True)
        ... class Ridge:
        ...     weight: float
        ...     def __call__(self, parameters, anchor):
        ...         return self.weight * sum(p.square().sum() for p in parameters.values())
        >>> Ridge(0.5)({"a": torch.tensor([1.0, 3.0])}, {})
        tensor(5.)
    """

    def __call__(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns the value of the term, a sum over the entries of the tensors.

        Args:
            parameters: The tensors that are trained in this round, by name.
            anchor: The values that these tensors had when training began.
        """
        ...


@dataclass(frozen=True)
class Proximal:
    """The penalty μ/2 · ‖w - w_global‖² of FedProx (arXiv 1812.06127).

    Attributes:
        mu: The weight μ, not negative.
    """

    mu: float

    def __call__(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns μ/2 · ‖w - w_global‖², where w is `parameters` and w_global is `anchor`."""
        return proximal(self.mu, parameters, anchor)


@dataclass(frozen=True)
class Penalty:
    """The penalty that the function `penalty` of a strategy or of a fine-tuning part computes.

    Attributes:
        owner: The aggregation strategy of the run, or a part of the run's fine-tuning method.
    """

    owner: Strategy | Part

    def __call__(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns the penalty that the owner computes."""
        return self.owner.penalty(parameters, anchor)


def terms_of(
    strategy: Strategy, method: Method | None = None, proximal_mu: float = 0.0
) -> tuple[Term, ...]:
    """Returns the terms that a strategy and a fine-tuning method add to the local loss.

    Args:
        strategy: The aggregation strategy of the run.
        method: The fine-tuning method of the run; None if no method adds a term.
        proximal_mu: The weight μ of FedProx's penalty in the plan of the round; 0 for no penalty.
    """
    overridden = type(strategy).penalty is not Strategy.penalty
    owners: list[Strategy | Part] = [strategy] if overridden else []
    owners += method.penalising if method else ()
    planned = (Proximal(proximal_mu),) if proximal_mu else ()
    return (*planned, *(Penalty(owner) for owner in owners))


def cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float, sizes: Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Computes the mean cross-entropy over the images of a client, summed over stacked clients.

    Args:
        logits: The outputs of the model, (B, L).
        labels: The numbers of the images' true classes, (B,).
        smoothing: The label smoothing, in [0, 1).
        sizes: The number of images of each stacked client; None for a single client.

    Returns:
        A pair: the loss to minimise, and a tensor (K,) without gradients. Entry k of the tensor is
        the sum of the losses over the images of client k.

    Example:
        >>> both = cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 0]), 0.0, (1, 2))
        >>> [round(x, 3) for x in (both[0].item(), *both[1].tolist())]
        [1.386, 0.693, 1.386]
    """
    if sizes is None:  # PyTorch's mean rounds differently from a mean of parts
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss, (loss.detach() * len(labels)).unsqueeze(0)
    each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    parts = torch.split(each, list(sizes))
    loss = torch.stack([own.mean() for own in parts]).sum()
    return loss, torch.stack([own.detach().sum() for own in parts])


def penalties(
    terms: Sequence[Term], parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
) -> Tensor | float:
    """Returns the sum of all terms of a round, or 0 if there are no terms."""
    total: Tensor | float = 0.0
    for term in terms:
        total = total + term(parameters, anchor)
    return total
