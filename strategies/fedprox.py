"""FedProx: FedAvg with a squared penalty that keeps each client's model near the global model.

    client: min over w of  Fₖ(w) + μ/2 · ‖w - w_global‖²;    server: as FedAvg

Fₖ is the loss of client k, w are the client's tensors, w_global the server's tensors, and μ is the
weight of the penalty. With μ = 0, FedProx is FedAvg. A client sends and receives all trained
tensors.

Source: Li et al., arXiv 1812.06127, algorithm 2 (with a fixed number of local epochs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fl_vitlora.config.settings import setting
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, averaged, proximal


@dataclass(frozen=True, kw_only=True)
class FedProx(Strategy):
    """Federated averaging with a penalty on the distance of a client from the global model.

    Attributes:
        mu: The weight μ of the penalty, not negative.
    """

    sums_suffice = True

    mu: float = setting(
        0.01, "The weight of the penalty on the distance from the global model.", "[0, inf)"
    )

    def step_bound(self) -> float:
        """Returns 1, because a mean lies between the smallest and the largest delta."""
        return 1.0

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns μ/2 · ‖w - w_global‖², where w is `parameters` and w_global is `anchor`."""
        return proximal(self.mu, parameters, anchor)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta, weighted by the number of images."""
        return averaged(model, updates), state
