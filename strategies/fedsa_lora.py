"""FedSA-LoRA: clients train A and B, but share only A; each client keeps its own B.

    A ← Σₖ pₖ·Aₖ,  Bₖ stays at client k,  pₖ = nₖ / Σn

There is no common product, and so no bias in it. There is no single model either, so the clients
measure the accuracy. The means of A, the head and the patch embedding are exact. Uplink and
downlink carry |A|, the head and the patch embedding; the server never sees a B.

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
    """Federated averaging of LoRA with a personal B; it has no hyper-parameters."""

    low_rank = True
    sums_suffice = True
    personal = (B,)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images, to a model without B."""
        return averaged(model, updates), state
