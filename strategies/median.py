"""Coordinate-wise median: the middle value of the clients' deltas in every coordinate.

    wᵢ ← wᵢ + median over k of Δₖᵢ

wᵢ is entry i of the model, and Δₖᵢ is its change at client k. With an even number of clients, the
median is the mean of the two middle values. The median tolerates arbitrary updates from fewer than
half of the clients. The median is biased even if no client is hostile: the median of skewed values
is not their mean, and with LoRA the factors A and B are treated separately. The numbers of images
are ignored. A client sends and receives all trained tensors. The server must see each update.

Source: Yin et al., arXiv 1803.01498, definition 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.robust import coordinatewise, middle
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, moved


@dataclass(frozen=True, kw_only=True)
class Median(Strategy):
    """Moves each coordinate by the median of the clients' deltas.

    This strategy has no hyper-parameters.
    """

    def step_bound(self) -> float:
        """Returns 1, because a median lies between the smallest and the largest delta."""
        return 1.0

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the median delta."""
        half = (len(updates) - 1) // 2
        return moved(model, coordinatewise(updates, lambda rising: middle(rising, half))), state
