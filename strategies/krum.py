"""Krum: the server uses only one delta, the one that is nearest to the other deltas.

    w ← w + Δₖ,  k = argmin s(k),  s(k) = Σ ‖Δₖ - Δⱼ‖² over the K - f - 2 nearest j ≠ k

Krum tolerates arbitrary updates from f clients if K ≥ 2f + 3; an experiment with fewer clients is
refused. If clients fail in a round, f is lowered until K ≥ 2f + 3, and if only two clients are
left, the first is chosen. One client's delta represents all clients. So the result is as noisy as
the delta of one client. It is exact for the product of LoRA. It is wrong for clients whose images
differ from those of most clients. The numbers of images are ignored. Uplink and downlink carry all
trained tensors. The server must see each update.

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
        f: The number of clients of a round that may send arbitrary updates.
    """

    f: int = setting(
        1, "The number of clients of a round that may send arbitrary updates.", "[0, inf)"
    )

    def objection(self, config: Config, participants: int) -> str:
        """Refuses a round with fewer clients than the proof requires."""
        del config
        return too_few_for_krum(participants, self.f)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the chosen delta."""
        return averaged(model, krum(updates, self.f, chosen=1)), state
