"""RoLoRA: clients train B in odd rounds and A in even rounds; the other factor is frozen.

    odd rounds:   B ← Σₖ pₖ·Bₖ,  Aₖ = A;    even rounds:  A ← Σₖ pₖ·Aₖ,  Bₖ = B;    pₖ = nₖ / Σn

Aₖ and Bₖ are the factors of client k, which has nₖ images. The aggregation is exact in every round,
also for the product B·A, because the product is linear in the factor that is trained. In FFA-LoRA
only B is trained; in RoLoRA both factors are trained, each in half of the rounds. A client sends B
in odd rounds and A in even rounds. A client that took part in all rounds receives the factor that
was trained in the previous round: A in odd rounds, and B in even rounds. In round 1 a client
receives B. The head and the patch embedding are averaged and sent in both directions.

Source: Chen et al., arXiv 2502.01755, the alternating algorithm. B is trained first, because B
starts at zero, and A has no gradient while B is zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class RoLoRA(Strategy):
    """Alternating federated averaging of LoRA.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    sums_suffice = True

    def step_bound(self) -> float:
        """Returns 1, because a mean lies between the smallest and the largest delta."""
        return 1.0

    def plan(self, server_round: int) -> ClientPlan:
        """Freezes A in odd rounds and B in even rounds."""
        return ClientPlan(frozen=(A,) if server_round % 2 else (B,))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images; frozen factors do not change."""
        return averaged(model, updates), state
