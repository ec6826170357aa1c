"""LoRA-FAIR: averages A and B, and corrects B so that B·A is nearer to the mean of the products.

    A ← Ā = Σₖ pₖ·Aₖ,  B ← B̄ + ΔB,    ΔB = (Σₖ pₖ·Bₖ·Aₖ - B̄·Ā)·Āᵀ·(Ā·Āᵀ + λI)⁻¹,  pₖ = nₖ / Σn

Aₖ and Bₖ are the factors of client k, which has nₖ images, and B̄ = Σₖ pₖ·Bₖ. The correction ΔB
minimises ‖Σₖ pₖ·Bₖ·Aₖ - (B̄ + ΔB)·Ā‖² + λ·‖ΔB‖². The product has two biases: one comes from λ;
the other is the part of the mean of the products that lies outside the row space of Ā. λ = 0 gives
the best B for this Ā, and a very large λ gives FedAvg. A client sends and receives A, B, the head
and the patch embedding. The head and the patch embedding are averaged exactly.

Source: Bian et al., arXiv 2411.14961, the refinement of B at the server, λ = 0.01. The paper
minimises S(Σₖ pₖ·Bₖ·Aₖ, (B̄ + ΔB)·Ā) + λ·‖ΔB‖ by SGD, where S measures the difference by the
cosine. In this project S is the squared distance, and the norm in the penalty is squared. The
squared distance depends on the length of the product as well as on its direction, and the formula
for ΔB gives the minimum, so no SGD is needed. The same λ therefore has another effect than in
the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fl_vitlora.config.settings import setting
from fl_vitlora.lowrank import A, B, paths, stack, trained
from fl_vitlora.state import State, mean
from fl_vitlora.strategy import Strategy, Update, averaged, shares


@dataclass(frozen=True, kw_only=True)
class LoRAFAIR(Strategy):
    """Federated averaging of LoRA, after which the server corrects B.

    Attributes:
        regularization: The weight λ of the squared norm ‖ΔB‖² of the correction, not negative.
    """

    low_rank = True

    regularization: float = setting(
        0.01, "The weight of the penalty on the size of the correction of B.", "[0, inf)"
    )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Averages all tensors, and then corrects every B."""
        weights = shares(updates)
        clients = [trained(model, update) for update in updates]
        average = mean(clients, weights)
        new = averaged(model, updates)
        for path in paths(model):
            a, b = average[path + A], average[path + B]
            tall, wide = stack(weights, clients, path)
            gram = a @ a.T
            missed = wide @ (tall @ a.T) - b @ gram
            ridge = gram + self.regularization * torch.eye(len(a)).to(gram)
            inverse = torch.linalg.pinv(ridge, hermitian=True)  # least squares if λ = 0
            new[path + B] = (b + missed @ inverse).to(model[path + B].dtype)
        return new, state
