"""FedSVD: clients train only B; each round the server sets A to the singular vectors of B·A.

    B̄ = Σₖ pₖ·Bₖ,    B̄·A = U·S·Vᵀ,    A ← Vᵀ,  B ← U·S,    pₖ = nₖ / Σn

The aggregation is exact, also for the product: the product B·A is linear in B, and its rank is at
most r, so that its decomposition to rank r loses nothing. From the first round on, the rows of A
are orthonormal, even if the product has a rank below r. They always span the space of the first A.
The uplink carries |B|, the downlink |A| + |B|. The head and the patch embedding are averaged and
sent both ways.

Source: Lee et al., arXiv 2505.12805, the method without its differential privacy. Here the server
decomposes the product in every round. If the product is zero, A does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B, refactored, trained
from fl_vitlora.state import State, mean
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FedSVD(Strategy):
    """Federated averaging of B with an orthonormal A; it has no hyper-parameters."""

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
