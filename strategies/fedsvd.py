"""FedSVD: clients train B alone; between rounds the server turns A into the directions of B·A.

    B̄ = Σₖ pₖ·Bₖ,    B̄·A = U·S·Vᵀ,    A ← Vᵀ,  B ← U·S,    pₖ = nₖ / Σn

Exact, the product included: it is linear in B, and the decomposition of a product of rank r leaves
nothing out. The rows of A are orthonormal from the first round on, also where the product has a
lower rank; the space that they span stays that of the first A. Up: |B|. Down: |A| + |B|. The head
and the patch embedding are averaged and go both ways.

Source: Lee et al., arXiv 2505.12805, the method, without its differential privacy, with the
decomposition in every round. A product of zeros leaves A as it is.
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
        """Lets A rest at the clients in every round."""
        del server_round
        return ClientPlan(frozen=(A,))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Factors the product of mean B and A anew, and averages the rest."""
        average = mean([trained(model, update) for update in updates], shares(updates))
        return averaged(model, updates) | refactored(model, [1.0], [average]), state
