"""Fed-SB: clients train only a small square matrix R, which lies between frozen factors B and A.

    W + s·B·R·A,    R ← Σₖ pₖ·Rₖ,  pₖ = nₖ / Σn,    so  Σₖ pₖ·B·Rₖ·A = B·R·A

W is the frozen weight, s the factor of LoRA, and Rₖ the matrix R of client k, which has nₖ images.
The new product B·R·A is exactly the mean of the clients' products, because this product is linear
in R. A client sends and receives r² numbers for each weight (r is the rank), and also the head and
the patch embedding. A and B are never sent: every client computes them from its own copy of the
pre-trained model.

Source: Singhal et al., arXiv 2502.15436, the aggregation. The paper takes A and B from singular
vectors of the first step's gradient, which needs data. In this project A and B are singular vectors
of the pre-trained weight, as in LoRA-XS (Bałazy et al., arXiv 2405.17604).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class FedSB(Strategy):
    """Federated averaging of the matrix R of LoRA-XS.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    sums_suffice = True
    adapter = "lora_xs"

    def step_bound(self) -> float:
        """Returns 1, because a mean lies between the smallest and the largest delta."""
        return 1.0

    def plan(self, server_round: int) -> ClientPlan:
        """Freezes A and B in every round."""
        del server_round
        return ClientPlan(frozen=(A, B))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images."""
        return averaged(model, updates), state
