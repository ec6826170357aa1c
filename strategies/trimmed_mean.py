"""Coordinate-wise trimmed mean: of every number, the mean without the largest and the smallest.

    wᵢ ← wᵢ + mean of the Δₖᵢ without the ⌊β·K⌋ smallest and the ⌊β·K⌋ largest of them

It withstands ⌊β·K⌋ of K clients sending whatever they like. β = 0 is the unweighted mean; with few
clients, where ⌊β·K⌋ = 0, it is that too. Biased where values are skewed, and on LoRA as FedAvg:
it takes A and B each by themselves. Images are not counted. Up and down: all trained tensors. It
must see each update.

Source: Yin et al., arXiv 1803.01498, definition 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.config import Config
from fl_vitlora.config.settings import setting
from fl_vitlora.robust import coordinatewise, middle
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, moved

ROUNDING = 1e-9  # 0.29 · 100 is a little less than 29


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Strategy):
    """The trimmed mean of every coordinate.

    Attributes:
        beta: β, the share that is cut off at each end.
    """

    beta: float = setting(0.1, "share of the clients cut off at each end", "[0, 0.5)")

    def objection(self, config: Config, participants: int) -> str:
        """Refuses a share that cuts nobody off."""
        del config
        if not self.beta or self.beta * participants >= 1:
            return ""
        return (
            f"beta {self.beta:g} of {participants} clients cuts nobody off; take at least "
            f"--set strategy.beta={1 / participants:.2g}"
        )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the trimmed mean delta."""
        cut = min(int(self.beta * len(updates) + ROUNDING), (len(updates) - 1) // 2)
        return moved(model, coordinatewise(updates, lambda rising: middle(rising, cut))), state
