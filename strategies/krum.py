"""Krum: the server uses only one delta, namely the delta that is nearest to the other deltas.

    w ← w + Δₖ,  k = argmin s(k),  s(k) = Σ ‖Δₖ - Δⱼ‖² over the K - f - 2 nearest j ≠ k

Δₖ is the delta of client k (its tensors after training minus before), and K is the number of
clients. Krum tolerates arbitrary updates from f clients if K ≥ 2f + 3. An experiment with fewer
clients is refused. If clients fail in a round, f is lowered until K ≥ 2f + 3. If only two clients
are left, the delta of the first client is chosen. One client's delta represents all clients.
Therefore the result is as noisy as the delta of one client. With LoRA the new product B·A is
exactly the product of the chosen client. The result is wrong for clients whose images differ from
the images of most clients. The numbers of images are ignored. A client sends and receives all
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
    """Moves the model by the one delta that has the lowest score of Krum.

    Attributes:
        f: The number of clients of a round that may send arbitrary updates.
    """

    f: int = setting(
        1, "The number of clients of a round that may send arbitrary updates.", "[0, inf)"
    )

    def step_bound(self) -> float:
        """Returns 1, because the new model has the delta of one client."""
        return 1.0

    def objection(self, config: Config, participants: int) -> str:
        """Returns an objection if a round has fewer clients than Krum's proof needs (2f + 3)."""
        del config
        return too_few_for_krum(participants, self.f)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the delta with the lowest score to the model."""
        return averaged(model, krum(updates, self.f, chosen=1)), state
