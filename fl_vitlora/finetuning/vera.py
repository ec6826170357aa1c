"""VeRA: two trained vectors scale a pair of frozen random matrices, which all layers share.

    W' = W + diag(b)·B·diag(d)·A

A, (r, n), and B, (m, r), are drawn with the seed of the run. Therefore the pair A, B is never sent.
All slices of equal shape use the same pair, which saves memory. At the start b = 0, and
therefore W' = W exactly. Every entry of d starts at 0.1.

A client sends the vectors b and d, which is m + r numbers for a slice (an adapted part of a layer).
The mean of the clients' vectors does not give the mean of their weights, because W' has products of
entries of b and d. As in the paper, the vectors need a larger learning rate than the matrices of
LoRA. By default the learning rate of the vectors is ten times the learning rate of LoRA.

Source: Kopiczko, Blankevoort, Asano, arXiv 2310.11454. The paper uses one pair for all layers of
a model, because the adapted layers have equal shapes. In this module each shape of a slice has its
own pair, which is our own choice.

Letters in shapes: n inputs, m outputs of an adapted part of a layer, r rank, K clients that share a
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart


class SharedPair(nn.Module):
    """A pair of frozen random matrices, which all slices of equal shape share.

    The pair is a PyTorch module, so that PyTorch moves or copies a shared pair only once.

    Args:
        outputs: The number of outputs m.
        inputs: The number of inputs n.
        rank: The rank r of the low-rank matrices.

    Attributes:
        A: The matrix A, (r, n), drawn from the Kaiming-uniform distribution; a buffer.
        B: The matrix B, (m, r), drawn from the same distribution; a buffer.
    """

    A: Tensor
    B: Tensor

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        for name, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            drawn = nn.init.kaiming_uniform_(torch.empty(shape))
            self.register_buffer(name, drawn, persistent=False)


class VeRAAdapter(SliceAdapter):
    """The two vectors of one slice (an adapted part of a layer).

    Args:
        pair: The frozen matrices A and B.
        start: The value of every entry of d at the start.

    Attributes:
        inner: The vector d, (r,).
        outer: The vector b, (m,), zero.
    """

    def __init__(self, pair: SharedPair, start: float) -> None:
        super().__init__()
        self.pair = pair
        self.inner = nn.Parameter(torch.full((len(pair.A),), start))
        self.outer = nn.Parameter(torch.zeros(len(pair.B)))

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W + diag(b)·B·diag(d)·A."""
        product = self.pair.B @ (self.inner.unsqueeze(-1) * self.pair.A)
        return weight + self.outer.unsqueeze(-1) * product


@dataclass(frozen=True, kw_only=True)
class VeRA(SlicePart):
    """The part of a fine-tuning method that adds VeRA to every block.

    Attributes:
        shared_rank: The rank r of the frozen matrices. The rank may be larger than m and n.
        inner_start: The value of every entry of d at the start.
        vector_rate: The factor by which the learning rate of the two vectors is multiplied.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    shared_rank: int = setting(256, "Rank r of the shared frozen matrices.", "[1, inf)")
    inner_start: float = setting(0.1, "Value of the inner vector d at the start.", "(0, inf)")
    vector_rate: float = setting(
        10.0, "Factor by which the learning rate of the vectors is multiplied.", "(0, inf)"
    )

    def attach(self, model: nn.Module) -> None:
        """Adds the vectors to each target layer, and one shared pair for each shape of slices."""
        super().attach(model)
        pairs: dict[tuple[torch.Size, torch.Size], SharedPair] = {}
        for module in model.modules():
            if isinstance(module, VeRAAdapter):
                shapes = (module.pair.A.shape, module.pair.B.shape)
                module.pair = pairs.setdefault(shapes, module.pair)

    def adapter(self, weight: Tensor) -> VeRAAdapter:
        """Returns the vectors for one slice, with a new pair of matrices.

        Later `attach` replaces the new pair by the shared pair of all slices of this shape.
        """
        outputs, inputs = weight.shape
        return VeRAAdapter(SharedPair(outputs, inputs, self.shared_rank), self.inner_start)

    def rate(self, name: str) -> float:
        """Returns `vector_rate`, the factor for the learning rate of the vectors."""
        del name
        return self.vector_rate
