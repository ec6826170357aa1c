"""Krum: the one delta that lies nearest to the others.

    w ← w + Δₖ,  k = argmin s(k),  s(k) = Σ ‖Δₖ - Δⱼ‖² over the K - f - 2 nearest j ≠ k

It withstands f clients sending whatever they like where K ≥ 2f + 3, and an experiment of fewer is
refused; if clients fail in a round, f is lowered to what is left, and of two the first is taken.
One client's delta stands for all, so it is as noisy as one, exact for the product of LoRA, and
wrong for clients whose images differ from most. Images are not counted. Up and down: all trained
tensors. It must see each update.

Source: Blanchard et al., Machine learning with adversaries, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.config import Config
from fl_vitlora.config.settings import setting
from fl_vitlora.robust import krum, too_few_for_krum
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class Krum(Strategy):
    """The delta with the best score of Krum.

    Attributes:
        f: The number of clients of a round that may send anything.
    """

    f: int = setting(1, "clients of a round that may send anything", "[0, inf)")

    def objection(self, config: Config, participants: int) -> str:
        """Refuses a round of fewer clients than the proof asks for."""
        del config
        return too_few_for_krum(participants, self.f)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the chosen delta."""
        return averaged(model, krum(updates, self.f, chosen=1)), state
