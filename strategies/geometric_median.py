"""Geometric median (RFA): the point whose distances from the clients' deltas are least in sum.

    w ← w + z,  z = argmin Σ pₖ·‖z - Δₖ‖,  pₖ = 1 / K

By a few steps of the smoothed algorithm of Weiszfeld, over all tensors as one vector. It withstands
fewer than half of the clients sending whatever they like. The paper weighs them by their images,
pₖ = nₖ / Σn. Clients count these themselves, and one that claims half of all images then decides;
so images are not counted here unless `by_images` asks for it. Without hostile clients it is near
the mean of the clients, and biased on LoRA as FedAvg: it takes A and B each by themselves. Up and
down: all trained tensors. It must see each update (the paper gets by with sums, in one exchange
with the clients for each step; here the server has what it needs).

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
    """The geometric median of the deltas.

    Attributes:
        smoothing: ν, the distance below which a delta draws no harder.
        iterations: The iterations of Weiszfeld's algorithm.
        by_images: True if clients weigh by the images that they report.
    """

    smoothing: float = setting(1e-6, "distance below which a delta draws no harder", "(0, inf)")
    iterations: int = setting(10, "of Weiszfeld's algorithm", "[1, inf)")
    by_images: bool = setting(
        False, "weigh clients by the images that they report, as the paper does; they may lie"
    )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the geometric median of the deltas."""
        median = geometric_median(
            updates, self.smoothing, self.iterations, by_images=self.by_images
        )
        return moved(model, median), state
