"""Coordinate-wise median: of every number, the value in the middle of the clients' deltas.

    wᵢ ← wᵢ + median over k of Δₖᵢ

Half-way between the two in the middle where clients are even in number. It withstands fewer than
half of them sending whatever they like. Biased even without them: the median of skewed values is
not their mean, and on LoRA it takes A and B each by themselves. Images are not counted. Up and
down: all trained tensors. It must see each update.

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
    """The median of every coordinate."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the median delta."""
        half = (len(updates) - 1) // 2
        return moved(model, coordinatewise(updates, lambda rising: middle(rising, half))), state
