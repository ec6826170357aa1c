"""SCAFFOLD: each local step is corrected towards the mean direction of all clients.

    client  w ← w - η·g + η·(d - dₖ) in every step;  dₖ⁺ = dₖ - d + Δₖ / (steps·η);  sends dₖ⁺ - dₖ
    server  w ← w + server_rate·Σ pₖ·Δₖ;  d = Σ nₖ·dₖ / Σ nₖ over all N clients of the run

w are the weights, g is the step direction of the optimiser, and η is the learning rate. Δₖ is the
change of w by the training of client k, and dₖ⁺ is the new value of dₖ. dₖ is the mean change of w
in a local step of client k, without the correction d - dₖ and divided by η. Δₖ / (steps·η) contains
this correction, so the formula of dₖ⁺ subtracts it again. With plain SGD, dₖ is minus the mean
gradient, so d = -c exactly, where c is the control variate of the paper (option II). This form is
also defined for momentum and AdamW, which the paper does not treat. All dₖ start at zero.

In the paper all clients have equal weights. In this project a client is weighted by its number of
images nₖ, so the objective is Σ nₖ·Fₖ, as in FedAvg. The server keeps the sum Σ nₖ·dₖ and adds
nₖ·(dₖ⁺ - dₖ) for every participant, which is exact for any set of participants. The server
estimates Σ nₖ as N times the mean number of images of the participants so far. With equal nₖ, d
grows in a round by |S|/N · the mean of dₖ⁺ - dₖ over the participants S, as in the paper.

In FedAvg the local steps of different clients drift apart, which biases the result; SCAFFOLD
removes this bias. With LoRA the result is still biased, because the factors A and B are averaged
separately. A client sends two tensors for each trained tensor. A client also receives two tensors
for each trained tensor, but only one in the first round. For a tensor that is frozen in a round,
neither d nor a change of dₖ is sent. A client stores dₖ between its rounds. The server needs only
the sum of the clients' updates.

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
    """Federated averaging in which every local step is corrected by control variates d and dₖ.

    Attributes:
        server_rate: The factor by which the mean of the clients' deltas is multiplied.
    """

    sums_suffice = True

    server_rate: float = setting(
        1.0, "The factor by which the mean of the clients' deltas is multiplied.", "(0, inf)"
    )

    def broadcast(self, state: State) -> State:
        """Returns d, which the server sends to all participants."""
        if not state:
            return {}
        images, clients, population = state[SEEN].tolist()
        return scale(_control(state), clients / (images * population))

    def drift(self, broadcast: State, memory: State) -> State:
        """Returns the correction d - dₖ of each tensor for which d or dₖ is known."""
        known = {**memory, **broadcast}
        return subtract(_of(broadcast, known), _of(memory, known))

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        """Returns the change of dₖ, which the client sends, and the new dₖ, which it stores."""
        common, own = (_of(known, work.delta) for known in (broadcast, memory))
        step = scale(work.delta, 1 / (work.steps * work.rate))
        new = zip_map(lambda d_k, d, moved: d_k - d + moved, own, common, step)
        return subtract(new, own), {**memory, **new}

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean delta to the model, and the changes of nₖ·dₖ to their sum."""
        weights = [update.samples for update in updates]
        changes = scale(mean([update.report for update in updates], weights), sum(weights))
        images, clients, _ = state[SEEN].tolist() if state else (0, 0, 0)
        clients += sum(update.members for update in updates)
        seen = [images + sum(weights), clients, updates[0].population]
        new = add(_of(_control(state), model), _of(changes, model))
        new[SEEN] = torch.tensor(seen, dtype=torch.float64)
        return averaged(model, updates, self.server_rate), new


def _control(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != SEEN}


def _of(known: State, names: State) -> State:
    """Returns the tensors with the wanted names; zeros stand for tensors that are unknown.

    A tensor is unknown before its first training. A plan or a fine-tuning method may freeze the
    tensor in the first rounds.

    Args:
        known: The known tensors.
        names: Tensors with the wanted names and shapes.
    """
    return {n: known[n] if n in known else torch.zeros_like(w) for n, w in names.items()}
