"""AFLoRA: the matrices of low-rank adapters freeze one by one, while two vectors stay trained.

    W' = W + diag(s_u)·B·diag(s_d)·A

At the start s_u = 0. Therefore W' = W. If a slice has as many outputs as inputs, its A and B are
frozen from the start: they are drawn with the seed of the run and never sent. For other slices, A
and B are trained until the server freezes them. The server scores every matrix that is still
trained, entry by entry, after each round:

    I = |change of the entry in the round|
    Ī ← 0.85·Ī + 0.15·I,    U ← 0.95·U + 0.05·|I - Ī|,    score = Ī·U

A cubic schedule gives the share of all entries that may remain trained. This share gives a
threshold for the scores. The server freezes every matrix whose mean score is below the threshold,
and clients no longer send a frozen matrix. Therefore the messages become shorter during the run.

Source: Liu et al., arXiv 2403.13269. In the paper one trainer scores gradients in windows of ten
steps. In this module the server scores the aggregated changes of a round, so that all clients
freeze the same matrices; the times of the schedule are shares of the rounds. The scores of changes
and the times in rounds are our own choices for federated training.

The mean of the clients' tensors does not give the mean of their weights W', because W' contains
products of trained tensors. With ``exact=true`` only s_u is trained; then W' is linear in s_u, and
the mean of the clients' vectors s_u gives exactly the mean of their weights.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, r rank. For each such part (a
slice), a client sends r + m numbers, and r·(n + m) more until A and B are frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import frozen_names
from fl_vitlora.finetuning.importance import below, cubic_share, smoothed
from fl_vitlora.finetuning.lora import check_rank
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart
from fl_vitlora.state import State

MATRICES = (".lora_A", ".lora_B")
MEAN, SPREAD = "mean of ", "spread of "  # prefixes of tensors' names in the memory
FIRST = 0.1  # the value of every entry of s_d at the start


class AFLoRAAdapter(SliceAdapter):
    """The matrices and vectors of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        rank: The rank r of the low-rank matrices.
        exact: True if only s_u is trained.

    Attributes:
        lora_A: The matrix A, (r, n). The attribute `lora_B` is the matrix B, (m, r). A and B are
            drawn from the Kaiming-uniform distribution. A and B are parameters if the server may
            freeze them later, and buffers if they are frozen from the start.
        low: The vector s_d, (r,).
        up: The vector s_u, (m,).
    """

    def __init__(self, weight: Tensor, rank: int, *, exact: bool) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        check_rank(rank, inputs, outputs)
        always = exact or outputs == inputs
        for name, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
            drawn = nn.init.kaiming_uniform_(torch.empty(shape))
            self._add(name, drawn, frozen=always)
        self._add("low", torch.full((rank,), FIRST), frozen=exact)
        self.up = nn.Parameter(torch.zeros(outputs))

    def _add(self, name: str, tensor: Tensor, *, frozen: bool) -> None:
        if frozen:
            self.register_buffer(name, tensor)
        else:
            self.register_parameter(name, nn.Parameter(tensor))

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W + diag(s_u)·B·diag(s_d)·A."""
        product = (self.lora_B * self.low.unsqueeze(-2)) @ self.lora_A  # type: ignore[operator]
        changed: Tensor = weight + self.up.unsqueeze(-1) * product
        return changed


@dataclass(frozen=True, kw_only=True)
class AFLoRA(SlicePart):
    """The part of a fine-tuning method that adds AFLoRA to every block.

    The paper adapts all six matrices of a block: ``finetuning.targets=[q,k,v,proj,fc1,fc2]``. With
    these targets, only the matrices A and B of fc1 and fc2 are trained at the start.

    Attributes:
        rank: The rank r of the matrices.
        exact: True to train only s_u.
        begin: The share of the rounds before the first matrix may freeze.
        end: The share of the rounds after which all matrices are frozen.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    rank: int = setting(4, "Rank r of the low-rank matrices.", "[1, inf)")
    exact: bool = setting(
        False,
        "True to train only the vector s_u, so that the mean of the clients' vectors gives "
        "exactly the mean of their weights.",
    )
    begin: float = setting(0.05, "Share of the rounds before a matrix may freeze.", "[0, 1)")
    end: float = setting(0.5, "Share of the rounds after which all matrices are frozen.", "(0, 1]")

    def adapter(self, weight: Tensor) -> AFLoRAAdapter:
        """Returns the matrices and vectors for one slice (an adapted part of a layer)."""
        return AFLoRAAdapter(weight, self.rank, exact=self.exact)

    def averages_exactly(self) -> bool:
        """Returns True if only s_u is trained."""
        return self.exact

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns the names of the matrices that the server has frozen."""
        del server_round
        return frozen_names.names_of(memory)

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Scores the trained matrices, and freezes each matrix whose score is too low."""
        frozen = frozen_names.names_of(memory)
        active = [n for n in known.after if n.endswith(MATRICES) and n not in frozen]
        kept, scores = State(), State()
        for name in active:
            size = (known.after[name] - known.before[name]).abs()
            before = memory.get(SPREAD + name, torch.zeros_like(size))
            mean, spread = smoothed(size, memory.get(MEAN + name, 0.0), before)
            scores[name] = mean * spread
            kept |= {MEAN + name: mean, SPREAD + name: spread}
        freezing = below(scores, self.remaining(known.round, known.rounds))
        for name in freezing:
            del kept[MEAN + name], kept[SPREAD + name]
        return {}, {**kept, **frozen_names.frozen([*frozen, *freezing])}

    def remaining(self, server_round: int, rounds: int) -> float:
        """Returns the share of entries that stay trained after a round, in [0, 1]."""
        return cubic_share(server_round, self.begin * rounds, max(self.end, self.begin) * rounds)
