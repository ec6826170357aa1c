"""FedSA-LoRA: all train A and B, but share A alone; each client keeps a B of its own.

    A ← Σₖ pₖ·Aₖ,  Bₖ stays at client k,  pₖ = nₖ / Σn

There is no common product and so no bias in it; there is no single model either: accuracy is the
clients'. The means of A, the head and the patch embedding are exact. Up and down: |A|, and the head
and the patch embedding; the server never sees a B.

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
        """Adds the mean delta, weighted by the number of images, to a model that has no B."""
        return averaged(model, updates), state
