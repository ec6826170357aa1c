"""FedSA-LoRA: clients train A and B, but share only A; each client keeps its own B.

    A ← Σₖ pₖ·Aₖ,  Bₖ stays at client k,  pₖ = nₖ / Σn

Aₖ and Bₖ are the matrices of client k, which has nₖ images. The clients have no common product B·A,
so no product can be biased. As there is no common model, each client measures the accuracy of its
own model. The means of A, the head and the patch embedding are exact. A client sends and receives
A, the head and the patch embedding. The server never sees a matrix B.

Source: Guo et al., arXiv 2410.01463, its LoRA variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.lowrank import B
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class FedSALoRA(Strategy):
    """Federated averaging of A; each client keeps its own B.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    sums_suffice = True
    personal = (B,)

    def step_bound(self) -> float:
        """Returns 1, because a mean lies between the smallest and the largest delta."""
        return 1.0

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images. The server's model has no B."""
        return averaged(model, updates), state
