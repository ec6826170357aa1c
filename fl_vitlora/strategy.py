"""The contract of an aggregation strategy: both halves of the algorithm in one frozen value.

A strategy is a frozen, keyword-only dataclass whose fields are its hyper-parameters. It keeps no
state of its own; what it must remember from round to round it takes and returns, on the server as
`state`, at a client as `memory`. So it can be sent to workers, checkpointed, and run again.

Only `aggregate`, the server's half, must be written. The whole of FedAvg (arXiv 1602.05629):

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Mine(Strategy):
    ...     def aggregate(self, model, updates, state):
    ...         return averaged(model, updates), state

A round, and who calls what:

    before   objection(config, participants)                    optional: why it cannot be
    server   plan(round), broadcast(state)                      what clients train, get, and pay for
    client   penalty(parameters, anchor), in every step         optional, a term of the loss
    client   drift(broadcast, memory); trains; report(...)      optional, for control variates
    server   aggregate(model, updates, state)                   the next model

`strategies/README.md` teaches all of it on one page; `fl_vitlora.lowrank` has the algebra of LoRA's
pairs; `fl_vitlora.testing` checks what stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.state import State, mean, scale

SEVERAL = -1  # the client of an update that is the mean of several


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one client sent back.

    Attributes:
        client: Number of its shard; -1 for the mean of several (`members`).
        samples: The number of images that the client trained on.
        loss: Its mean training loss.
        delta: Its tensors after training minus those it had received, in the model's shapes: a
            client of a smaller rank has zeros beyond it.
        steps: Optimiser steps that it took.
        rank: The rank of the client's low-rank matrices, if clients differ in that.
        report: The tensors that `Strategy.report` returned at the client.
        members: The number of clients in the mean; more than one where the server sees only sums.
        population: The number of all clients, in this round or not.
    """

    client: int
    samples: int
    loss: float
    delta: State
    steps: int = 1
    rank: int | None = None
    report: State = field(default_factory=dict)
    members: int = 1
    population: int = 1


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """What clients do in a round, as far as it can be said without code.

    Attributes:
        frozen: Endings of the names of tensors that clients neither train nor send in this round,
            for example ``(".lora_A",)``. Clients remember them: they are sent down again only when
            they have changed, and their initial values never.
        restarted: Endings of tensors that are at their initial values again in every round, so
            that they are never sent down; `aggregate` must return them as it was given them.
        proximal_mu: Weight μ of the penalty μ/2 · ‖w - w_global‖². This is the older way;
            `Strategy.penalty` can express any penalty.
    """

    frozen: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    proximal_mu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """What a client's training came to in a round.

    Attributes:
        delta: Its tensors after training minus those before, without the frozen ones.
        steps: Optimiser steps that it took.
        rate: The learning rate η of the round.
    """

    delta: State
    steps: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """An aggregation strategy; see the module for the rules.

    Attributes:
        low_rank: True if the strategy works on LoRA's pairs; a model without them is refused.
        any_rank: Clients may have ranks of their own: each is sent the first rows of every A and
            the first columns of every B, as many as its rank.
        sums_suffice: All that the server needs of the updates is their mean weighted by samples.
            Then they can be summed securely, or be made noisy, before the strategy sees them: it
            is given one update, the mean.
        personal: Endings of the names of tensors that every client trains for itself, keeps from
            round to round and never sends. Accuracy is then measured by the clients.
        rebased: Endings of the names of tensors that the server writes in new coordinates in every
            round, as factors of a product that it factors anew: what a codec withheld of them in
            one round says nothing in the next, and is dropped.
        adapter: The low-rank matrices of the method ``lora``: "lora" has B·A. "lora_xs", or
            "sandwich" as it was called before, has B·R·A, where A and B are singular vectors of the
            pre-trained weight; the plan says which of the three rest.
    """

    low_rank: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    sums_suffice: ClassVar[bool] = False
    personal: ClassVar[tuple[str, ...]] = ()
    rebased: ClassVar[tuple[str, ...]] = ()
    adapter: ClassVar[Literal["lora", "lora_xs", "sandwich"]] = "lora"

    def objection(self, config: Config, participants: int) -> str:
        """Says why an experiment cannot be run as this strategy means it, before it begins.

        Args:
            config: The experiment.
            participants: The number of clients that take part in a round.

        Returns:
            One line with what would do instead; empty, as by default, if nothing is against it.
        """
        del config, participants
        return ""

    def plan(self, server_round: int) -> ClientPlan:
        """Says what clients do in a round.

        Args:
            server_round: The number of the round, from 1.

        Returns:
            By default: train and send everything, without a penalty.
        """
        del server_round
        return ClientPlan()

    def broadcast(self, state: State) -> State:
        """Says what clients are sent beside the model.

        Args:
            state: The state that `aggregate` returned in the round before; empty at first.

        Returns:
            Nothing, as by default; or tensors of all the model's names and shapes.
        """
        del state
        return {}

    def drift(self, broadcast: State, memory: State) -> State:
        """At a client: what is added to its tensors after every step, times the learning rate.

        Args:
            broadcast: The tensors that the server sent beside the model.
            memory: The memory that `report` returned in the client's last round; empty at first.

        Returns:
            Nothing, as by default; or tensors of some of the trained names.
        """
        del broadcast, memory
        return {}

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns what a client adds to its loss in every step.

        The value must be a sum over the entries of the tensors: several clients may be stacked,
        with a first dimension of their own, and then the value is the sum over these clients.

        Args:
            parameters: The tensors that the client trains in this round.
            anchor: Their values when the client's training began.

        Returns:
            A scalar; by default 0.
        """
        del parameters, anchor
        return 0.0

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        """At a client, after training: what it sends beside its delta, and what it remembers.

        Args:
            work: The result of the client's training.
            broadcast: The tensors that the server sent beside the model.
            memory: The memory of this client before the round; empty at first.

        Returns:
            Nothing or tensors of all of the delta's names and shapes; and the new memory, which
            stays in the client's Flower context.
        """
        del work, broadcast
        return {}, memory

    @abstractmethod
    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Combines the updates of a round into a new global model.

        Args:
            model: The global tensors that the round began with.
            updates: At least one update, ordered by client; the deltas lack the frozen tensors.
            state: The state that this strategy returned in the round before; empty at first.

        Returns:
            The new global tensors, all of ``model``'s names, and the new state. Beside them may
            stand ``PATH.merged_A`` (R, n) and ``PATH.merged_B`` (m, R) for a low-rank pair
            ``PATH.lora_A`` and ``PATH.lora_B``: then everybody adds s·merged_B·merged_A to the
            frozen weight that the pair stands on, s = α / r. They are sent to each client once.
        """


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
