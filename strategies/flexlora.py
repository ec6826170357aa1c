"""FlexLoRA: the mean of the clients' products, taken apart again by singular values.

    Σₖ pₖ·Bₖ·Aₖ = U·S·Vᵀ,    A ← first r rows of Vᵀ,  B ← first r columns of U·S,    pₖ = nₖ / Σn

The mean of products is exact, whatever the clients' ranks rₖ; its cut to rank r is the nearest in
the Frobenius norm and biased only by the singular values that it leaves out. A client of a smaller
rank gets the first rows and columns, which is again the nearest of its rank. Up and down: rₖ/r of
|A| + |B|, and the head and the patch embedding, which are averaged.

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
    """Aggregation of products by singular value decomposition; it has no hyper-parameters."""

    low_rank = True
    any_rank = True
    rebased = (A, B)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Factors the mean product of every pair, and averages the rest."""
        clients = [trained(model, update) for update in updates]
        return averaged(model, updates) | refactored(model, shares(updates), clients), state
