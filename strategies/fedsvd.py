"""FedSVD: clients train only B; each round the server sets A to the singular vectors of B·A.

    B̄ = Σₖ pₖ·Bₖ,    B̄·A = U·S·Vᵀ,    A ← Vᵀ,  B ← U·S,    pₖ = nₖ / Σn

Bₖ is the matrix B of client k, which has nₖ images. U·S·Vᵀ is the singular value decomposition. The
new product B·A is exactly the mean of the clients' products: the product is linear in B, and its
rank is at most r, so a decomposition of rank r loses nothing. After the first round the rows
of A are orthonormal, even if the product has a rank below r. The rows of A always span the row
space of the first A. A client sends B and receives A and B. The head and the patch embedding are
averaged and sent in both directions.

Source: Lee et al., arXiv 2505.12805, the method without its differential privacy. In this project
the server decomposes the product in every round. If the product is zero, A does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B, refactored, trained
from fl_vitlora.state import State, mean
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FedSVD(Strategy):
    """Federated averaging of B; the rows of A are orthonormal.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    sums_suffice = True
    rebased = (A, B)

    def plan(self, server_round: int) -> ClientPlan:
        """Freezes A for the clients in every round."""
        del server_round
        return ClientPlan(frozen=(A,))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Decomposes the product of the mean B and A, and averages the other tensors."""
        average = mean([trained(model, update) for update in updates], shares(updates))
        return averaged(model, updates) | refactored(model, [1.0], [average]), state
