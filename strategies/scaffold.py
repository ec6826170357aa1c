"""SCAFFOLD: in every step a client is turned from its own direction into that of all.

    client  w ← w - η·g + η·(d - dₖ) in every step;  dₖ⁺ = dₖ - d + Δₖ / (steps·η);  sends dₖ⁺ - dₖ
    server  w ← w + server_rate·Σ pₖ·Δₖ;  d = Σ nₖ·dₖ / Σ nₖ over all N clients, in the round or not

dₖ is how far a client goes by itself in a step, divided by η: Δₖ / (steps·η) is that and the
correction d - dₖ, which is taken off again. With plain SGD it is minus the mean gradient, so that
d = -c of the paper (option II), word for word; put this way it means something with momentum and
AdamW too, of which the paper does not speak. All dₖ begin at zero.

Differs from the paper, where clients count the same: by images they make Σ nₖ·Fₖ the objective, as
in FedAvg. Reports then change the sum Σ nₖ·dₖ, which stays exact whoever takes part; Σ nₖ is
estimated as N times the images per client seen so far. With equal nₖ it is d + |S|/N · the mean
report of the clients S of a round, as there.

The bias that local steps have in FedAvg is gone; on LoRA that of averaged factors stays. Up: all
trained tensors, twice. Down: twice, in the first round once. A client remembers dₖ. The server
needs sums only.

Source: Karimireddy et al., arXiv 1910.06378, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fl_vitlora.config.settings import setting
from fl_vitlora.state import State, add, mean, scale, subtract, zip_map
from fl_vitlora.strategy import LocalWork, Strategy, Update, averaged

SEEN = "images and clients seen, and all clients"


@dataclass(frozen=True, kw_only=True)
class Scaffold(Strategy):
    """Federated averaging with control variates.

    Attributes:
        server_rate: Factor on the mean delta.
    """

    sums_suffice = True

    server_rate: float = setting(1.0, "factor on the mean delta", "(0, inf)")

    def broadcast(self, state: State) -> State:
        """Sends d."""
        if not state:
            return {}
        images, clients, population = state[SEEN].tolist()
        return scale(_control(state), clients / (images * population))

    def drift(self, broadcast: State, memory: State) -> State:
        """Computes d - dₖ; nothing where neither is known."""
        known = broadcast or memory
        common, own = _or_zeros(broadcast, known), _or_zeros(memory, known)
        return subtract(common, own)

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        """Sends the change of dₖ, and remembers dₖ."""
        common, own = (_or_zeros(known, work.delta) for known in (broadcast, memory))
        step = scale(work.delta, 1 / (work.steps * work.rate))
        new = zip_map(lambda d_k, d, moved: d_k - d + moved, own, common, step)
        return subtract(new, own), new

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Moves the model by the mean delta, and the sum of all nₖ·dₖ by the reports."""
        weights = [update.samples for update in updates]
        changes = scale(mean([update.report for update in updates], weights), sum(weights))
        images, clients, _ = state[SEEN].tolist() if state else (0, 0, 0)
        clients += sum(update.members for update in updates)
        seen = [images + sum(weights), clients, updates[0].population]
        new = add(_or_zeros(_control(state), changes), changes)
        new[SEEN] = torch.tensor(seen, dtype=torch.float64)
        return averaged(model, updates, self.server_rate), new


def _control(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != SEEN}


def _or_zeros(known: State, like: State) -> State:
    return known or scale(like, 0.0)
