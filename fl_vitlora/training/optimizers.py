"""The contract of an optimiser, with which a client takes its local steps, and the usual ones.

An optimiser starts afresh in every round. It gets the trained tensors in groups, each
with its own learning rate: the patch embedding, the head and the body may have rates of their own.

An optimiser is *entrywise* if the step of an entry depends on the gradients of that entry alone.
Then K clients can share a batch: their tensors are stacked, (K, ...), and every slice takes the
step that it would have taken alone. The clients of another optimiser are trained one by one.

To add an optimiser, write an entry into a file of its own, and its module and name into one line of
the table in `fl_vitlora.config.optimizer_names`. This is a whole entry:

    >>> def make(groups, config, rate):
    ...     return torch.optim.RMSprop(groups, lr=rate, weight_decay=config.weight_decay)
    >>> rmsprop = Optimizer(make=make, entrywise=True, told="RMSprop (Hinton, 2012)")
    >>> weight = nn.Parameter(torch.tensor([3.0]))
    >>> taken = rmsprop.make([{"params": [weight], "lr": 0.5}], TrainingConfig(), 1.0)
    >>> weight.square().sum().backward()
    >>> _ = taken.step()
    >>> weight.data  # a gradient of 6, divided by the root of the mean square 0.36
    tensor([-2.])
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.config.optimizer_names import OPTIMIZERS
from fl_vitlora.finetuning import methods

BETA2 = 0.999  # the decay rate of the mean squared gradient, the usual one

Groups = Sequence[dict[str, Any]]


class Make(Protocol):
    """A function that makes an optimiser."""

    def __call__(
        self, groups: Groups, config: TrainingConfig, rate: float
    ) -> torch.optim.Optimizer:
        """Returns a new optimiser, which remembers nothing.

        Args:
            groups: The groups of trained tensors: "params" is a list of parameters, "lr" is their
                learning rate.
            config: The hyper-parameters, for example the weight decay.
            rate: The learning rate of tensors without a rate of their own.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An entry of the table.

    Attributes:
        make: A function that makes the optimiser of a round.
        entrywise: True if the step of an entry depends on the gradients of that entry alone.
        told: One line that says what the optimiser is, with its paper.
    """

    make: Make
    entrywise: bool
    told: str


def with_moments(kind: type[Any], **options: Any) -> Make:
    """Returns what makes an optimiser of the Adam family, with β₁ from the settings.

    Args:
        kind: The class of the optimiser, with the arguments of `torch.optim.Adam`.
        **options: Further arguments of the class.
    """

    def make(groups: Groups, config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
        betas, decay = (config.beta1, BETA2), config.weight_decay
        made: torch.optim.Optimizer = kind(
            groups, lr=rate, betas=betas, weight_decay=decay, **options
        )
        return made

    return make


def _adagrad(groups: Groups, config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups, lr=rate, weight_decay=config.weight_decay)


def _sgd(groups: Groups, config: TrainingConfig, rate: float) -> torch.optim.Optimizer:
    momentum, decay = config.momentum, config.weight_decay
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=decay)


_adam, _nadam = with_moments(torch.optim.Adam), with_moments(torch.optim.NAdam)
_adamw = with_moments(torch.optim.AdamW, fused=True)

ADAGRAD = Optimizer(make=_adagrad, entrywise=True, told="Adagrad (Duchi et al., JMLR 2011).")
ADAM = Optimizer(make=_adam, entrywise=True, told="Adam (Kingma and Ba, arXiv 1412.6980).")
ADAMW = Optimizer(
    make=_adamw,
    entrywise=True,
    told="Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).",
)
NADAM = Optimizer(
    make=_nadam, entrywise=True, told="Adam with Nesterov's momentum (Dozat, ICLR workshop 2016)."
)
SGD = Optimizer(
    make=_sgd, entrywise=True, told="Stochastic gradient descent with momentum (Polyak, 1964)."
)


def optimizer_of(name: str) -> Optimizer:
    """Imports the entry of an optimiser of the table.

    Example:
        >>> optimizer_of("adam").told
        'Adam (Kingma and Ba, arXiv 1412.6980).'
    """
    module, _, entry = OPTIMIZERS[name].partition(":")
    found: Optimizer = getattr(importlib.import_module(module), entry)
    return found


def is_entrywise(config: TrainingConfig) -> bool:
    """Returns True if the optimiser of an experiment lets several clients share a batch.

    Example:
        >>> is_entrywise(TrainingConfig(optimizer="nadam"))
        True
    """
    return optimizer_of(config.optimizer).entrywise


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, rate: float
) -> torch.optim.Optimizer:
    """Makes the optimiser of a round, which remembers nothing of the rounds before.

    Args:
        parameters: The tensors that are trained in this round, by the names under which they are
            exchanged.
        config: The hyper-parameters.
        rate: The learning rate of the round.
    """
    groups = _rate_groups(parameters, config, rate)
    return optimizer_of(config.optimizer).make(groups, config, rate)


def _rate_groups(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, rate: float
) -> Groups:
    """Groups tensors by their rates; those of LoRA have the plain rate."""
    factors = {
        methods.PATCH_EMBEDDING: config.patch_embed_rate,
        methods.HEAD: config.head_rate,
        methods.BODY: config.body_rate,
    }
    members: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault(factors.get(methods.group_of(name), 1.0), []).append(parameter)
    return [{"params": chosen, "lr": rate * factor} for factor, chosen in members.items()]
