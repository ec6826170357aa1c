"""FLoRA: the server adds all clients' products to the frozen weight; then A and B start again.

    W ← W + s·[B₁, …, B_K]·[p₁A₁; …; p_KA_K] = W + s·Σₖ pₖ·Bₖ·Aₖ,  B ← 0,  A stays,  pₖ = nₖ / Σn

W is the frozen weight and s the factor of LoRA. Client k has nₖ images and the rank rₖ. The matrix
[B₁, …, B_K] has the clients' matrices B side by side, and [p₁A₁; …; p_KA_K] has the matrices pₖAₖ
one below the other. These two matrices are called the stack. The aggregation is exact for all ranks
rₖ: the product of the stack has at most the rank Σrₖ, and nothing is truncated. |A| is the number
of entries of A at rank r. A client sends rₖ/r·(|A| + |B|) numbers. A client receives the stack,
which has Σrₖ/r·(|A| + |B|) numbers, or K·(|A| + |B|) if all ranks are r. A client that missed
rounds needs the stack of each of these rounds. The pair A and B starts every round with its initial
values, so the server does not send this pair. The head and the patch embedding are averaged and
sent in both directions.

Source: Wang et al., arXiv 2409.05976, the stacking-based aggregation. The paper draws a new A in
every round; in this project A always starts at its first value, which every client has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, B, cut, merged, paths, trained
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FLoRA(Strategy):
    """Stacks the clients' low-rank pairs and merges the stack.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    any_rank = True

    def plan(self, server_round: int) -> ClientPlan:
        """Resets every pair A and B to its initial values at the start of each round."""
        del server_round
        return ClientPlan(restarted=(A, B))

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Stacks the clients' pairs, each with its own rank, and averages the other tensors."""
        clients = [cut(trained(model, update), update.rank) for update in updates]
        restarted_pairs = {}
        for path in paths(model):
            restarted_pairs[path + A] = model[path + A].clone()
            restarted_pairs[path + B] = model[path + B].new_zeros(model[path + B].shape)
        return averaged(model, updates) | restarted_pairs | merged(shares(updates), clients), state
