"""FedNova: averages deltas, each divided by its client's effective number of local steps.

    w ← w + τ·Σ pₖ·Δₖ / τₖ,  τ = Σ pₖ·τₖ,  pₖ = nₖ / Σn

Client k has nₖ images, the loss Fₖ, and sends Δₖ, its tensors after training minus before. A client
with more images takes more steps, and FedAvg gives it more weight twice: by pₖ and by the length of
Δₖ. Therefore FedAvg does not minimise Σ pₖ·Fₖ, but another objective. τₖ is the effective number of
steps (‖aₖ‖₁ in the paper): each gradient of a client enters Δₖ with a factor, and τₖ is the sum of
these factors.

    plain SGD       τₖ = steps
    momentum ρ      τₖ = (steps - ρ·(1 - ρ^steps) / (1 - ρ)) / (1 - ρ)

The paper does not treat AdamW. For AdamW, this project chooses ρ = 0, because a step of AdamW has
about the same length for all gradients. If all clients take equally many steps, FedNova gives the
same result as FedAvg. With LoRA the factors A and B are averaged separately, so the mean of their
product is biased as in FedAvg. A client sends and receives all trained tensors; a client also sends
its number of steps. The server must see each update, because every client has its own τₖ.

Source: Wang et al., arXiv 2007.07481.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_vitlora.config import Config
from fl_vitlora.config.settings import setting
from fl_vitlora.state import State, scale
from fl_vitlora.strategy import Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class FedNova(Strategy):
    """Federated averaging of deltas that are divided by their effective numbers of steps.

    Attributes:
        momentum: The momentum ρ of the clients' SGD; 0 for plain SGD and for AdamW.
    """

    momentum: float = setting(
        0.0, "The momentum of the clients' SGD; 0 for plain SGD and AdamW.", "[0, 1)"
    )

    def objection(self, config: Config, participants: int) -> str:
        """Refuses clients whose optimiser has another momentum than this strategy assumes."""
        del participants
        training = config.training
        momentum = training.momentum if training.optimizer == "sgd" else 0.0
        if momentum == self.momentum:
            return ""
        return (
            f"clients train with momentum {momentum:g}, but strategy.momentum is "
            f"{self.momentum:g}; the two must be equal: --set strategy.momentum={momentum:g}"
        )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Scales all deltas to the same number of steps, and adds their mean."""
        lengths = [self._length(update.steps) for update in updates]
        effective = sum(p * t for p, t in zip(shares(updates), lengths, strict=True))
        normalised = [
            replace(update, delta=scale(update.delta, effective / length))
            for update, length in zip(updates, lengths, strict=True)
        ]
        return averaged(model, normalised), state

    def _length(self, steps: int) -> float:
        """Returns the effective number of steps τₖ of a client that took `steps` steps."""
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
