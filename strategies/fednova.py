"""FedNova: clients count by the direction that they went, not by how many steps they took.

    w ← w + τ·Σ pₖ·Δₖ / τₖ,  τ = Σ pₖ·τₖ,  pₖ = nₖ / Σn

A client with more images takes more steps; FedAvg then counts it twice, in pₖ and in the length of
Δₖ, and so minimises another objective than Σ pₖ·Fₖ. τₖ is ‖aₖ‖₁ of the paper: how often each
gradient has come to act on the weights in the end, summed up,

    plain SGD       τₖ = steps
    momentum ρ      τₖ = (steps - ρ·(1 - ρ^steps) / (1 - ρ)) / (1 - ρ)

For AdamW, which the paper leaves out, take ρ = 0: its steps are of about the same length, whatever
the gradients' (our choice). Equal steps are FedAvg. On LoRA the bias of averaged factors stays. Up
and down: all trained tensors, and a number. It must see each update, since τₖ is the client's own.

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
    """Federated averaging of normalised deltas.

    Attributes:
        momentum: ρ of the clients' SGD; 0 for plain SGD and for AdamW.
    """

    momentum: float = setting(0.0, "of the clients' SGD; 0 for plain SGD and AdamW", "[0, 1)")

    def objection(self, config: Config, participants: int) -> str:
        """Refuses clients whose optimiser has another momentum than it reckons with."""
        del participants
        training = config.training
        momentum = training.momentum if training.optimizer == "sgd" else 0.0
        if momentum == self.momentum:
            return ""
        return (
            f"clients train with momentum {momentum:g}, it reckons with {self.momentum:g}: "
            f"--set strategy.momentum={momentum:g}"
        )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Brings all deltas to the same number of steps, and adds their mean."""
        lengths = [self._length(update.steps) for update in updates]
        effective = sum(p * t for p, t in zip(shares(updates), lengths, strict=True))
        normalised = [
            replace(update, delta=scale(update.delta, effective / length))
            for update, length in zip(updates, lengths, strict=True)
        ]
        return averaged(model, normalised), state

    def _length(self, steps: int) -> float:
        """Computes τₖ."""
        rho = self.momentum
        return (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
