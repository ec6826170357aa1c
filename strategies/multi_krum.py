"""Multi-Krum: the mean of the m deltas with the lowest scores of Krum.

    w ← w + 1/m · Σ Δₖ over the m clients of least s(k);  s as in `krum`

Δₖ is the delta of client k (its tensors after training minus before). s(k) is large if Δₖ is far
from the deltas of other clients. f is the number of hostile clients that Multi-Krum tolerates, and
K is the number of clients. With m = 1, Multi-Krum is Krum. With f = 0 and m = K the result is the
unweighted mean of all deltas. A mean of several deltas is less noisy than one delta. If K is
smaller than m, all K deltas are averaged. If K is too small for f, f is lowered to the largest
value that K allows. The numbers of images are ignored. With LoRA the result is biased like FedAvg,
because A and B are averaged separately. A client sends and receives all trained tensors. The server
must see each update.

Source: Blanchard et al., Machine learning with adversaries, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fl_vitlora.config import Config
from fl_vitlora.config.settings import setting
from fl_vitlora.robust import krum, too_few_for_krum
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class MultiKrum(Strategy):
    """Moves the model by the mean of the deltas that have the lowest scores of Krum.

    Attributes:
        f: The number of clients of a round that may send arbitrary updates.
        m: The number of deltas that are averaged. If m is None, K - f of K deltas are averaged.
    """

    f: int = setting(
        1, "The number of clients of a round that may send arbitrary updates.", "[0, inf)"
    )
    m: int | None = setting(
        None,
        "The number of deltas that are averaged. The default is the number of clients minus f.",
        "[1, inf)",
    )

    def step_bound(self) -> float:
        """Returns 1, because a mean lies between the smallest and the largest delta."""
        return 1.0

    def objection(self, config: Config, participants: int) -> str:
        """Returns an objection if a round has fewer clients than Krum's proof needs (2f + 3)."""
        del config
        return too_few_for_krum(participants, self.f)

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the unweighted mean of the m deltas with the lowest scores to the model."""
        m = max(1, len(updates) - self.f) if self.m is None else self.m
        chosen = krum(updates, self.f, chosen=m)
        return averaged(model, [replace(update, samples=1) for update in chosen]), state
