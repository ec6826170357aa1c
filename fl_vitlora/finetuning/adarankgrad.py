"""AdaRankGrad with common subspaces: all clients train coordinates in one low-dimensional subspace.

The method AdaRankGrad takes steps of Adam in the span of the leading singular vectors of a
gradient, and uses fewer singular vectors as training goes on. In this module all clients share a
subspace, and send coordinates in this subspace:

    subspaces 0, 2, 4, ...:  ΔW = Qᵀ·C,   Q (r, m),   C (r, n)
    subspaces 1, 3, 5, ...:  ΔW = Cᵀ·Q,   Q (r, n),   C (r, m)
    W' = W + the sum of ΔW over all subspaces

Q has orthonormal rows. The first Q is random and drawn with the seed of the run. Every later Q
holds the leading right singular vectors of the matrix C of the preceding subspace. Only one
subspace is trained at a time, and the terms ΔW of earlier subspaces stay in W'. A new subspace
begins when the aggregated steps no longer become shorter, and at the latest after `gap` rounds. The
rank of the new subspace is the smallest rank that keeps the matrix C of the preceding subspace up
to the relative error ξ; the other rows of the new C stay frozen at zero.

The mean of the clients' tensors gives exactly the mean of their weights: ΔW is linear in C, because
Q and all earlier C are the same for all clients. A client sends the rows of C that are trained,
which are at most r·n or r·m numbers for each slice. Q is never sent, because the server and the
clients compute Q from tensors that they already have. The server needs only sums of the clients'
tensors to begin a new subspace, so secure aggregation works.

Source: Refael et al., arXiv 2410.17881. The adaptive rank and the new subspaces upon convergence
come from the paper. Our own choices are the formulas for the rank and for convergence, the fixed
number of subspaces, and the common subspace. The aggregated change lies in the span of Q, so its
left singular vectors would give the same Q again, but its right singular vectors depend on the
gradient. Therefore the subspaces alternate between the two sides of the weight, like the iterations
of a randomised SVD. Every round begins with a new optimiser, so Adam's moments are not carried from
one subspace to the next.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.common_subspaces import CommonSubspaces
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.singular_vectors import smallest_rank
from fl_vitlora.finetuning.slices import SlicePart
from fl_vitlora.state import State

SUBSPACE, AGE, STEP = "subspace", "age", "step"  # keys of the memory; other keys are slices' paths


@dataclass(frozen=True, kw_only=True)
class AdaRankGrad(SlicePart):
    """The part of a fine-tuning method that trains coordinates in common subspaces.

    The weight decay should be zero; otherwise it acts on the coordinates, not on the weight.

    Attributes:
        rank: The largest rank r of a subspace.
        subspaces: The number of subspaces of a run.
        gap: The largest number of rounds for one subspace; the last subspace has no limit.
        error: The relative error ξ with which a new subspace keeps C of the preceding subspace.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    rank: int = setting(4, "Largest rank r of the subspaces.", "[1, inf)")
    subspaces: int = setting(4, "Number of subspaces of a run.", "[1, inf)")
    gap: int = setting(5, "Largest number of rounds for one subspace.", "[1, inf)")
    error: float = setting(
        0.2, "Relative error with which a new subspace keeps the previous change.", "[0, 1)"
    )

    def adapter(self, weight: Tensor) -> CommonSubspaces:
        """Returns the coordinates of one slice (an adapted part of a layer), all zero."""
        return CommonSubspaces(weight, self.rank, self.subspaces)

    def averages_exactly(self) -> bool:
        """Returns True, because W' is linear in the coordinates C."""
        return True

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns the rows of C that rest: those of other subspaces, and those beyond the rank."""
        del server_round
        present = int(memory.get(SUBSPACE, torch.tensor(0)))
        others = [k for k in range(self.subspaces) if k != present]
        beyond = [
            f"{path}{_ending(present, row)}"
            for path, rank in memory.items()
            if path not in (SUBSPACE, AGE, STEP)
            for row in range(int(rank), self.rank)
        ]
        return (*(_ending(k, row) for k in others for row in range(self.rank)), *beyond)

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Decides whether a new subspace begins, and which rank it has in each slice.

        After a round in which C did not move, nothing changes, because such a round does not show
        whether the steps still become shorter. Round 1 of a run that starts its head with `lda` is
        such a round, because no tensor is trained in round 1.
        """
        present = int(memory.get(SUBSPACE, torch.tensor(0)))
        age = int(memory.get(AGE, torch.tensor(0))) + 1
        after, before = (self._matrices(t, present) for t in (known.after, known.before))
        moved = [(after[path] - before[path]).double().norm() for path in after]
        step = torch.stack(moved).norm()
        if not step:
            return {}, dict(memory)
        settled = age > 1 and bool(step >= memory[STEP])
        if present + 1 < self.subspaces and (settled or age >= self.gap):
            ranks = {p: torch.tensor(smallest_rank(c, self.error)) for p, c in after.items()}
            return {}, _remembered(present + 1, 0, torch.zeros_like(step)) | ranks
        return {}, {**memory, **_remembered(present, age, step)}

    def _matrices(self, tensors: Mapping[str, Tensor], index: int) -> State:
        """Returns the matrix C of one subspace for each slice, under the path of the slice."""
        first = _ending(index, 0)
        paths = [name.removesuffix(first) for name in tensors if name.endswith(first)]
        rows = range(self.rank)
        return {p: torch.stack([tensors[p + _ending(index, row)] for row in rows]) for p in paths}


def _ending(index: int, row: int) -> str:
    """Returns the ending that the name of one row of C in one subspace has in every slice."""
    return f".subspaces.{index}.{row}"


def _remembered(index: int, age: int, step: Tensor) -> State:
    return {SUBSPACE: torch.tensor(index), AGE: torch.tensor(age), STEP: step}
