"""HetLoRA: factors of any rank are padded with zeros and weighted by the norm of their product.

    A ← Σₖ qₖ·[Aₖ; 0],  B ← Σₖ qₖ·[Bₖ, 0],    qₖ = ‖Bₖ·Aₖ‖ / Σⱼ ‖Bⱼ·Aⱼ‖  (Frobenius)

Aₖ and Bₖ are the factors of client k, which has the rank rₖ; r is the rank of the model. The
aggregation has two biases. The mean of the products is not the product of the means. If only a few
clients have a row of A, the other clients add zeros to the mean of this row; the same is true for
columns of B. The head and the patch embedding are averaged exactly, weighted by the number of
images. A client of rank rₖ gets the first rₖ rows of A and columns of B. A client of rank rₖ sends
and receives the share rₖ/r of the entries of A and B, and the whole head and patch embedding.

Source: Cho et al., arXiv 2401.06432, sparsity-weighted aggregation and truncation, without rank
self-pruning: a client keeps its rank. The paper defines the weights qₖ for a model with one pair.
In this project each pair has its own weights qₖ; other implementations use one norm over all pairs.
The paper leaves two cases open. If the products of a pair are zero at all clients, this project
weights the pair by the number of images. If a row lies beyond the rank of every client of the
round, this project leaves the row unchanged, because a row that is zero in A and in B has no
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.lowrank import A, B, paths, trained
from fl_vitlora.state import State, mean
from fl_vitlora.strategy import Strategy, Update, averaged


@dataclass(frozen=True, kw_only=True)
class HetLoRA(Strategy):
    """Averages LoRA factors of different ranks, weighted by norms of products.

    This strategy has no hyper-parameters.
    """

    low_rank = True
    any_rank = True

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Averages pairs by the norms of their products, and other tensors by numbers of images."""
        clients = [trained(model, update) for update in updates]
        new = averaged(model, updates)
        for path in paths(model):
            a, b = model[path + A], model[path + B]
            pairs = [{A: client[path + A], B: client[path + B]} for client in clients]
            norms = [_norm_of_product(pair) for pair in pairs]
            pair = mean(pairs, norms if any(norms) else [update.samples for update in updates])
            held = max(update.rank or len(a) for update in updates)
            new[path + A] = torch.cat([pair[A][:held].to(a.dtype), a[held:]])
            new[path + B] = torch.cat([pair[B][:, :held].to(b.dtype), b[:, held:]], dim=1)
        return new, state


def _norm_of_product(pair: State) -> float:
    """Computes ‖B·A‖, the square root of tr(BᵀB·AAᵀ), without computing the product."""
    squared: Tensor = (pair[B].T @ pair[B] * (pair[A] @ pair[A].T)).sum()
    return float(squared.clamp(min=0).sqrt())
