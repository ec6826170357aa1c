"""SCAFFOLD: in every step a client corrects its own direction towards that of all clients.

    client  w ← w - η·g + η·(d - dₖ) in every step;  dₖ⁺ = dₖ - d + Δₖ / (steps·η);  sends dₖ⁺ - dₖ
    server  w ← w + server_rate·Σ pₖ·Δₖ;  d = Σ nₖ·dₖ / Σ nₖ over all N clients, in the round or not

dₖ is the distance that a client moves in a step without correction, divided by η. Δₖ / (steps·η)
also contains the correction d - dₖ, which is subtracted again. With plain SGD, dₖ is minus the mean
gradient, so d = -c of the paper (option II) exactly. This form is also defined for momentum and
AdamW, which the paper does not treat. All dₖ start at zero.

In the paper all clients have equal weights. Here they are weighted by images, which makes Σ nₖ·Fₖ
the objective, as in FedAvg. Reports then change the sum Σ nₖ·dₖ, which stays exact for any set of
participants; Σ nₖ is estimated as N times the images per client seen so far. With equal nₖ, d
becomes d + |S|/N · the mean report of the clients S of a round, as in the paper.

The bias that local steps have in FedAvg disappears; with LoRA the bias of averaged factors remains.
The uplink carries all trained tensors twice, and so does the downlink, except once in the first
round. A client remembers dₖ. The server needs only sums.

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
        server_rate: The factor on the mean delta.
    """

    sums_suffice = True

    server_rate: float = setting(1.0, "The factor on the mean delta.", "(0, inf)")

    def broadcast(self, state: State) -> State:
        """Returns d, which the server sends to all participants."""
        if not state:
            return {}
        images, clients, population = state[SEEN].tolist()
        return scale(_control(state), clients / (images * population))

    def drift(self, broadcast: State, memory: State) -> State:
        """Computes d - dₖ; the result is empty if neither is known."""
        known = broadcast or memory
        common, own = _or_zeros(broadcast, known), _or_zeros(memory, known)
        return subtract(common, own)

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        """Returns the change of dₖ, which is sent, and dₖ, which the client remembers."""
        common, own = (_or_zeros(known, work.delta) for known in (broadcast, memory))
        step = scale(work.delta, 1 / (work.steps * work.rate))
        new = zip_map(lambda d_k, d, moved: d_k - d + moved, own, common, step)
        return subtract(new, own), new

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta to the model, and the reports to the sum of all nₖ·dₖ."""
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
