"""FedEx-LoRA: FedAvg of the factors, and what it misses goes into the frozen weight.

    A ← Ā = Σₖ pₖ·Aₖ,  B ← B̄ = Σₖ pₖ·Bₖ,  W ← W + s·(Σₖ pₖ·Bₖ·Aₖ - B̄·Ā),    pₖ = nₖ / Σn

The residual is written in K - 1 pairs of rank r:

    Σₖ pₖ·Bₖ·Aₖ - B̄·Ā = Σ_{k<K} pₖ·(Bₖ - B̄)·(Aₖ - A_K)

for Σₖ pₖ·(Bₖ - B̄) = 0: so Σₖ pₖ·(Bₖ - B̄)·Aₖ, the left side, stays the same when a constant is
taken from all Aₖ, and A_K makes the last term vanish. With one client there is no residual.

Exact, the product included. Up: |A| + |B|. Down: that and the residual, (K - 1)·(|A| + |B|), which
a client that sat out needs of every round that it missed. The head and the patch embedding are
averaged and go both ways.

Source: Singhal et al., arXiv 2410.09432, the method; the form of its residual is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import A, merged, trained
from fl_vitlora.state import State, mean, subtract
from fl_vitlora.strategy import Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FedExLoRA(Strategy):
    """Federated averaging of LoRA made exact by a residual; it has no hyper-parameters."""

    low_rank = True

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Averages everything, and writes the residual of the products beside it."""
        weights = shares(updates)
        clients = [trained(model, update) for update in updates]
        *others, last = clients
        average = mean(clients, weights)
        origin = {name: (last if name.endswith(A) else average)[name] for name in last}
        deviations = [subtract(client, origin) for client in others]
        return averaged(model, updates) | merged(weights[:-1], deviations), state
