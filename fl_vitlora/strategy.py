"""The contract of an aggregation strategy: both halves of the algorithm in one frozen value.

A strategy is a frozen, keyword-only dataclass whose fields are its hyper-parameters. It keeps no
state of its own; what it must remember from round to round it takes and returns. `aggregate` is the
server's half; `plan`, which has a default, is the client's.

Example, the whole of FedAvg (arXiv 1602.05629):

    >>> from dataclasses import dataclass
    >>> from fl_vitlora.state import State, add, mean
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Mine(Strategy):
    ...     def aggregate(self, model, updates, state):
    ...         step = mean([u.delta for u in updates], [u.samples for u in updates])
    ...         return add(model, step), state
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.state import State


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one client sent back.

    Attributes:
        client: Number of its shard.
        samples: How many images it trained on.
        loss: Its mean training loss.
        delta: Its tensors after training minus those it had received.
    """

    client: int
    samples: int
    loss: float
    delta: State


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """The client's half of a round.

    Attributes:
        frozen: Endings of the names of tensors that clients neither train nor send in this round,
            for example ``(".lora_A",)``.
        proximal_mu: Weight μ of the penalty μ/2 · ‖w - w_global‖².
    """

    frozen: tuple[str, ...] = ()
    proximal_mu: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """An aggregation strategy; see the module for the rules."""

    def plan(self, server_round: int) -> ClientPlan:
        """Says what clients do in a round.

        Args:
            server_round: From 1.

        Returns:
            By default: train and send everything, without a penalty.
        """
        del server_round
        return ClientPlan()

    @abstractmethod
    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Combines the updates of a round into a new global model.

        Args:
            model: The global tensors that the round began with.
            updates: At least one, ordered by client; their deltas lack the frozen tensors.
            state: What this strategy returned in the round before; empty at first.

        Returns:
            The new global tensors, all of ``model``'s names, and the new state.
        """
