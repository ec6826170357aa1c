"""Coordinate-wise trimmed mean: the mean of a coordinate without its largest and smallest values.

    wᵢ ← wᵢ + mean of the Δₖᵢ without the ⌊β·K⌋ smallest and the ⌊β·K⌋ largest of them

wᵢ is entry i of the model, and Δₖᵢ is its change at client k. β is the share of the clients that is
left out at each end. The trimmed mean tolerates arbitrary updates from ⌊β·K⌋ of K clients. The
result is the unweighted mean if ⌊β·K⌋ = 0, which happens if β = 0 or if there are too few clients.
The result is biased if the values are skewed. With LoRA the result is also biased like FedAvg,
because A and B are treated separately. The numbers of images are ignored. A client sends and
receives all trained tensors. The server must see each update.

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

ROUNDING = 1e-9  # in floating point, 0.29 · 100 is a little less than 29


@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Strategy):
    """Moves each coordinate by the trimmed mean of the clients' deltas.

    Attributes:
        beta: The share β of the clients whose values are left out at each end, in [0, 0.5).
    """

    beta: float = setting(
        0.1,
        "The share of the values that are left out at each end: the smallest and the largest.",
        "[0, 0.5)",
    )

    def step_bound(self) -> float:
        """Returns 1, because a trimmed mean lies between the smallest and the largest delta."""
        return 1.0

    def objection(self, config: Config, participants: int) -> str:
        """Returns an objection if β is positive, but too small to leave out a single client."""
        del config
        if not self.beta or self.beta * participants >= 1:
            return ""
        return (
            f"strategy.beta {self.beta:g} is too small: with {participants} clients, no value is "
            f"left out; set at least --set strategy.beta={1 / participants:.2g}"
        )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the trimmed mean of the clients' deltas to the model."""
        cut = min(int(self.beta * len(updates) + ROUNDING), (len(updates) - 1) // 2)
        return moved(model, coordinatewise(updates, lambda rising: middle(rising, cut))), state
