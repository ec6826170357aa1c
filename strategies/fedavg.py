"""FedAvg: the new model is the old model plus the mean of the clients' deltas.

    w ← w + Σₖ pₖ·Δₖ,  pₖ = nₖ / Σn

Δₖ is the delta of client k: its tensors after training minus before. Client k has nₖ images.
With LoRA, FedAvg averages the factors A and B separately (FedIT, arXiv 2305.05644). The mean is
exact for the patch embedding and the head. For the product B·A the result is biased, because the
mean of the products is not the product of the means. A client sends and receives all trained
tensors.

Source: McMahan et al., arXiv 1602.05629, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.config.settings import setting
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy):
    """Federated averaging: the server adds the mean of the clients' deltas to the model.

    Attributes:
        server_rate: The factor by which the mean delta is multiplied. The paper's FedAvg has the
            factor 1.
    """

    sums_suffice = True

    server_rate: float = setting(
        1.0, "The factor by which the mean of the clients' deltas is multiplied.", "(0, inf)"
    )

    def step_bound(self) -> float:
        """Returns the server rate, by which a mean of the deltas is multiplied."""
        return self.server_rate

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images."""
        return averaged(model, updates, self.server_rate), state
