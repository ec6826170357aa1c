"""RoLoRA: B and A take turns; one is trained and averaged while the other rests.

    odd rounds:   B ← Σₖ pₖ·Bₖ,  Aₖ = A;    even rounds:  A ← Σₖ pₖ·Aₖ,  Bₖ = B;    pₖ = nₖ / Σn

Exact in every round, the product included: it is linear in the factor that moves. Unlike in
FFA-LoRA both factors are learned, each in half of the rounds. Up: |B| in odd rounds, |A| in even
ones. Down: new to a client that missed no round is what the round before moved, |A| in odd rounds,
|B| in even ones and in the first. The head and the patch embedding are averaged and go both ways.

Source: Chen et al., arXiv 2502.01755, the alternating algorithm. B moves first: it begins at zero,
where A has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class RoLoRA(Strategy):
    """Alternating federated averaging of LoRA; it has no hyper-parameters."""

    low_rank = True
    sums_suffice = True

    def plan(self, server_round: int) -> ClientPlan:
        """Lets A rest in odd rounds and B in even ones."""
        return ClientPlan(frozen=(A,) if server_round % 2 else (B,))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images; what rested stays."""
        return averaged(model, updates), state
