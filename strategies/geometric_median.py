"""Geometric median (RFA): the vector with the least sum of distances to the clients' deltas.

    w ← w + z,  z = argmin Σ pₖ·‖z - Δₖ‖,  pₖ = 1 / K

Δₖ is the delta of client k (its tensors after training minus before), and K is the number of
clients. All tensors of a delta form one vector. A few steps of the smoothed algorithm of Weiszfeld
approximate the median z. The median tolerates arbitrary updates from fewer than half of the
clients. The paper weights clients by their numbers of images nₖ: pₖ = nₖ / Σn. But clients report
these numbers themselves, and a client that claims to have half of all images would decide alone.
Therefore this project uses the numbers of images only if `by_images` is set. Without hostile
clients the result is near the mean of the deltas. With LoRA the median is biased like FedAvg,
because the median treats A and B separately. A client sends and receives all trained tensors. The
server must see each update. (In the paper the server sees only sums, but asks the clients once in
every step of the algorithm.)

Source: Pillutla et al., arXiv 1912.13445.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.config.settings import setting
from fl_vitlora.robust import geometric_median
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update, moved


@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Strategy):
    """Moves the model by the geometric median of the clients' deltas.

    Attributes:
        smoothing: The smallest distance ν. The weight of a delta is one divided by its distance to
            the median. A distance smaller than ν is replaced by ν.
        iterations: The number of iterations of Weiszfeld's algorithm.
        by_images: True if clients are weighted by the numbers of images that they report.
    """

    smoothing: float = setting(
        1e-6, "The distance to the median below which a delta's weight is constant.", "(0, inf)"
    )
    iterations: int = setting(10, "The number of iterations of Weiszfeld's algorithm.", "[1, inf)")
    by_images: bool = setting(
        False,
        "Whether clients are weighted by the numbers of images that they report, as in the paper. "
        "Hostile clients may report false numbers.",
    )

    def step_bound(self) -> float:
        """Returns 1, because the geometric median is a weighted mean of the deltas."""
        return 1.0

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the geometric median of the deltas."""
        median = geometric_median(
            updates, self.smoothing, self.iterations, by_images=self.by_images
        )
        return moved(model, median), state
