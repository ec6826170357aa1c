"""FlexLoRA: the mean of the clients' products, decomposed again by singular values.

    Σₖ pₖ·Bₖ·Aₖ = U·S·Vᵀ,    A ← first r rows of Vᵀ,  B ← first r columns of U·S,    pₖ = nₖ / Σn

Aₖ and Bₖ are the matrices of client k, which has the rank rₖ and nₖ images. U·S·Vᵀ is the singular
value decomposition. The mean of the products is exact for all ranks rₖ. The server truncates this
mean to rank r, which gives the nearest matrix of rank r in the Frobenius norm. The only bias is the
loss of the dropped singular values. A client with a smaller rank rₖ gets the first rₖ rows of A and
columns of B. The product of these rows and columns is the nearest matrix of rank rₖ. A client sends
and receives the share rₖ/r of the entries of A and B. The head and the patch embedding are averaged
and sent as a whole.

Source: Bai et al., arXiv 2402.11505, the aggregation by SVD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B, refactored, trained
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Strategy):
    """Averages the products B·A and decomposes the mean again.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    any_rank = True
    rebased = (A, B)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Decomposes the mean product of every pair, and averages the other tensors."""
        clients = [trained(model, update) for update in updates]
        return averaged(model, updates) | refactored(model, shares(updates), clients), state
