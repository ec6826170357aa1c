"""The rules for an optimiser of local steps, and the functions that make optimisers.

Every round begins with a new optimiser. An optimiser gets the trained tensors in groups, and each
group has its own learning rate: the patch embedding, the head and the body may have different
rates.

An optimiser is *entrywise* if the step of an entry of a tensor depends only on the gradients of
this entry. With an entrywise optimiser, K clients can be trained in one batch: their tensors are
stacked, (K, ...), and each client takes the same step as if it were trained alone. If an optimiser
is not entrywise, clients are trained one by one.

To add an optimiser, write an `Optimizer` into a new file, and add its module and name in one line
to the table in `fl_vitlora.config.optimizer_names`. This is a complete example:

    >>> def make(groups, config, rate):
    ...     return torch.optim.RMSprop(groups, lr=rate, weight_decay=config.weight_decay)
    >>> rmsprop = Optimizer(make=make, entrywise=True, told="RMSprop (Hinton, 2012)")
    >>> weight = nn.Parameter(torch.tensor([3.0]))
    >>> taken = rmsprop.make([{"params": [weight], "lr": 0.5}], TrainingConfig(), 1.0)
    >>> weight.square().sum().backward()
    >>> _ = taken.step()
    >>> round(weight.item(), 3)  # a gradient of 6, divided by the root of the mean square 0.36
    -2.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.config.named_code import code_named
from fl_vitlora.config.optimizer_names import OPTIMIZERS
from fl_vitlora.finetuning import methods

BETA2 = 0.999  # the usual decay rate of the mean squared gradient

Groups = Sequence[dict[str, Any]]


class Make(Protocol):
    """A function that makes an optimiser."""

    def __call__(
        self, groups: Groups, config: TrainingConfig, rate: float
    ) -> torch.optim.Optimizer:
        """Returns a new optimiser, which has not taken a step yet.

        Args:
            groups: The groups of trained tensors: "params" is a list of parameters, and "lr" is the
                learning rate of these parameters.
            config: The hyper-parameters, for example the weight decay.
            rate: The learning rate of tensors whose group has no "lr".
        """
        ...


Bound = Callable[[TrainingConfig, int], float | None]


def no_bound(config: TrainingConfig, step: int) -> None:
    """Returns None, which means: it is not known how far a step of the optimiser moves an entry."""
    del config, step


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An entry of the table of optimisers.

    Attributes:
        make: A function that makes the optimiser of a round.
        entrywise: True if the step of an entry depends on the gradients of that entry alone.
        told: One line that names the optimiser and its paper.
        bound: A function that returns bₜ: the largest move of an entry in step t = 1, 2, ... of a
            round, as a multiple of the learning rate, whatever the gradients are (`movement`). The
            result is None if no bound is known.
    """

    make: Make
    entrywise: bool
    told: str
    bound: Bound = no_bound


def with_moments(kind: type[Any], **options: Any) -> Make:
    """Returns a function that makes an optimiser of the Adam family, with β₁ from the settings.

    Args:
        kind: The Python class of the optimiser. The class takes the arguments of
            `torch.optim.Adam`.
        **options: Further arguments with which each optimiser is made.
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


def _adam_bound(config: TrainingConfig, step: int) -> float | None:
    """Returns the largest |m̂ₜ|/√v̂ₜ in step t of Adam."""
    if config.weight_decay:
        return None
    ratio = config.beta1**2 / BETA2
    first = (1 - config.beta1) / (1 - config.beta1**step)
    second = (1 - BETA2**step) / (1 - BETA2)
    return first * math.sqrt(second * math.fsum(ratio**j for j in range(step)))


def _adagrad_bound(config: TrainingConfig, step: int) -> float | None:
    """Returns 1, the largest |g|/√(Σg²)."""
    del step
    return None if config.weight_decay else 1.0


def _sgd_bound(config: TrainingConfig, step: int) -> float | None:
    """Returns the largest |vₜ|, if gradients are clipped to a norm."""
    if config.weight_decay or config.clip_norm is None:
        return None
    kept = config.momentum
    return config.clip_norm * (1 - kept**step) / (1 - kept)


_adam, _nadam = with_moments(torch.optim.Adam), with_moments(torch.optim.NAdam)
_adamw = with_moments(torch.optim.AdamW, fused=True)

ADAGRAD = Optimizer(
    make=_adagrad,
    entrywise=True,
    told="Adagrad (Duchi et al., JMLR 2011).",
    bound=_adagrad_bound,
)
ADAM = Optimizer(
    make=_adam,
    entrywise=True,
    told="Adam (Kingma and Ba, arXiv 1412.6980).",
    bound=_adam_bound,
)
ADAMW = Optimizer(
    make=_adamw,
    entrywise=True,
    told="Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101).",
    bound=_adam_bound,
)
NADAM = Optimizer(
    make=_nadam, entrywise=True, told="Adam with Nesterov's momentum (Dozat, ICLR workshop 2016)."
)
SGD = Optimizer(
    make=_sgd,
    entrywise=True,
    told="Stochastic gradient descent with momentum (Polyak, 1964).",
    bound=_sgd_bound,
)


def optimizer_of(name: str) -> Optimizer:
    """Imports the module of an optimiser, and returns its `Optimizer`, an entry of the table.

    Example:
        >>> optimizer_of("adam").told
        'Adam (Kingma and Ba, arXiv 1412.6980).'
    """
    found: Optimizer = code_named(
        OPTIMIZERS[name], "optimiser", lambda entry: isinstance(entry, Optimizer)
    )
    return found


def is_entrywise(config: TrainingConfig) -> bool:
    """Returns True if the experiment's optimiser computes entry by entry.

    With an optimiser that computes entry by entry, several clients can be trained in one batch.

    Example:
        >>> is_entrywise(TrainingConfig(optimizer="nadam"))
        True
    """
    return optimizer_of(config.optimizer).entrywise


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: TrainingConfig,
    rate: float,
    own: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Makes a new optimiser for a round, which remembers nothing of earlier rounds.

    Args:
        parameters: The tensors that are trained in this round, by the names that they have in
            messages.
        config: The hyper-parameters of local training.
        rate: The learning rate of the round.
        own: The factors by which the fine-tuning method multiplies the learning rates of tensors,
            by name. By default no learning rate is multiplied.
    """
    groups = _rate_groups(parameters, config, rate, own or {})
    return optimizer_of(config.optimizer).make(groups, config, rate)


def _rate_groups(
    parameters: Mapping[str, nn.Parameter],
    config: TrainingConfig,
    rate: float,
    own: Mapping[str, float],
) -> Groups:
    """Groups tensors by their learning rates.

    A tensor of LoRA gets the learning rate of the round, and a tensor of another group gets this
    rate times a factor from the settings. The rate of every tensor is also multiplied by the
    tensor's factor in `own`, which the fine-tuning method sets.
    """
    members: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault(rate_factor(name, config, own), []).append(parameter)
    return [{"params": chosen, "lr": rate * factor} for factor, chosen in members.items()]


def rate_factor(name: str, config: TrainingConfig, own: Mapping[str, float]) -> float:
    """Returns the learning rate of a tensor, as a multiple of the learning rate of the round.

    Args:
        name: The name of the tensor in messages.
        config: The hyper-parameters, with the rates of groups of tensors.
        own: The factors of the fine-tuning method, by name.

    Example:
        >>> rate_factor("patch_embed.proj.weight", TrainingConfig(patch_embed_rate=0.25), {})
        0.25
    """
    factors = {
        methods.PATCH_EMBEDDING: config.patch_embed_rate,
        methods.HEAD: config.head_rate,
        methods.BODY: config.body_rate,
    }
    return factors.get(methods.group_of(name), 1.0) * own.get(name, 1.0)
