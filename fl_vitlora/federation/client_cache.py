"""What clients remember, so that the server sends nothing twice.

A client remembers the tensors that rested in the last round it took part in (`ClientPlan.frozen`),
and how many rounds' merged pairs it has added to its frozen weights. It knows the initial values of
everything, because it builds the same model. Whoever does not answer may or may not have
understood: it is taken to remember nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.state import State
from fl_vitlora.storage.trees import Tree
from fl_vitlora.strategy import ClientPlan


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one client remembers.

    Attributes:
        round: In which it last took part; 0 for none.
        tensors: As they were sent to it, or as they rested with it, then.
        merges: How many rounds' merged pairs it has.
        taken: The round of the last update that the server took of it; 0 for none.
        missed: Whether it was asked since, and its update did not arrive or was not taken.
    """

    round: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    merges: int = 0
    taken: int = 0
    missed: bool = False


class ClientCache:
    """Keeps account of what every client remembers.

    Args:
        initial: The exchanged tensors before the first round.
    """

    def __init__(self, initial: State) -> None:
        self._initial = initial
        self._memories: dict[int, Memory] = {}

    def of(self, client: int) -> Memory:
        """Returns what a client remembers."""
        return self._memories.get(client, Memory())

    def cached(self, client: int, model: State, plan: ClientPlan) -> frozenset[str]:
        """Names the tensors that a client need not be sent.

        Args:
            client: Who.
            model: What it is to have.
            plan: Of the round.
        """
        remembered = self.of(client).tensors

        def is_known(name: str, tensor: Tensor) -> bool:
            if name in remembered:
                return torch.equal(remembered[name], tensor)
            rests = name.endswith((*plan.frozen, *plan.restarted))
            return rests and torch.equal(self._initial[name], tensor)

        return frozenset(name for name, tensor in model.items() if is_known(name, tensor))

    def answered(
        self, client: int, server_round: int, model: GlobalModel, plan: ClientPlan
    ) -> None:
        """Notes that a client has taken part: it remembers what rested, and all merged pairs."""
        self._memories[client] = Memory(
            round=server_round,
            tensors={n: t for n, t in model.tensors.items() if n.endswith(plan.frozen)},
            merges=model.rounds,
            taken=server_round,
        )

    def measured(self, client: int, model: GlobalModel) -> None:
        """Notes that a client has been sent a model to measure it: it has all merged pairs."""
        self._memories[client] = replace(self.of(client), merges=model.rounds)

    def snapshot(self) -> Tree:
        """Returns what is known, for a checkpoint."""
        return {client: dict(vars(memory)) for client, memory in self._memories.items()}

    def restore(self, tree: Tree) -> None:
        """Takes up what `snapshot` returned."""
        self._memories = {client: Memory(**memory) for client, memory in tree.items()}

    def missed(self, client: int) -> None:
        """Notes that nobody knows what a client remembers; its last update that was taken stays."""
        self._memories[client] = Memory(taken=self.of(client).taken, missed=True)
