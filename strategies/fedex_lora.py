"""FedEx-LoRA: averages A and B, and adds the error of their product B·A to the frozen weight.

    A ← Ā = Σₖ pₖ·Aₖ,  B ← B̄ = Σₖ pₖ·Bₖ,  W ← W + s·(Σₖ pₖ·Bₖ·Aₖ - B̄·Ā),    pₖ = nₖ / Σn

Aₖ and Bₖ are the factors of client k, which has nₖ images, and s is the factor of LoRA. The term in
brackets is the residual: the mean of the products minus the product of the means. For K clients the
residual is stored as K - 1 pairs of factors of rank r:

    Σₖ pₖ·Bₖ·Aₖ - B̄·Ā = Σ_{k<K} pₖ·(Bₖ - B̄)·(Aₖ - A_K)

Since Σₖ pₖ·(Bₖ - B̄) = 0, the left side Σₖ pₖ·(Bₖ - B̄)·Aₖ does not change when a constant is
subtracted from all Aₖ, and subtracting A_K makes the last term vanish. With one client the residual
is zero.

The aggregation is exact, also for the product B·A. |A| is the number of entries of A. A client
sends |A| + |B| numbers. A client receives |A| + |B| numbers, and (K - 1)·(|A| + |B|) numbers for
the residual. A client that missed rounds needs the residual of each of these rounds. The head and
the patch embedding are averaged and sent in both directions.

Source: Singhal et al., arXiv 2410.09432, the method. The form of the residual is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, merged, trained
from fl_vitlora.state import State, mean, subtract
from fl_vitlora.strategy import Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(Strategy):
    """Federated averaging of LoRA with an exact residual.

    This strategy has no hyper-parameters.
    """

    low_rank = True

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Averages all tensors, and adds the residual of the products as merged pairs."""
        weights = shares(updates)
        clients = [trained(model, update) for update in updates]
        *others, last = clients
        average = mean(clients, weights)
        origin = {name: (last if name.endswith(A) else average)[name] for name in last}
        deviations = [subtract(client, origin) for client in others]
        return averaged(model, updates) | merged(weights[:-1], deviations), state
