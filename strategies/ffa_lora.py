"""FFA-LoRA: A always keeps its random initial value; only B is trained and averaged.

    B ← Σₖ pₖ·Bₖ,  Aₖ = A,  pₖ = nₖ / Σn,    so  Σₖ pₖ·Bₖ·A = B·A

Aₖ and Bₖ are the matrices of client k, which has nₖ images. The new product B·A is exactly the mean
of the clients' products, because this product is linear in B. The disadvantage is that all updates
of a weight stay in the row space of A. A client sends and receives B, the head and the patch
embedding. A is never sent.

Source: Sun et al., arXiv 2403.12313, the method, without its differential privacy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class FFALoRA(Strategy):
    """Federated averaging of LoRA's matrix B; A is frozen.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    sums_suffice = True

    def step_bound(self) -> float:
        """Returns 1, because a mean lies between the smallest and the largest delta."""
        return 1.0

    def plan(self, server_round: int) -> ClientPlan:
        """Freezes A in every round."""
        del server_round
        return ClientPlan(frozen=(A,))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images."""
        return averaged(model, updates), state
