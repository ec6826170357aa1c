"""SaRA: only the smallest entries of a weight are trained; entries that have grown are frozen.

    M = {entries with |W| < τ},    W' = W + scatter(M, v),    penalty λ·‖W'∘M‖_*

W'∘M is W' with zeros outside M, and ‖·‖_* is the nuclear norm, the sum of the singular values. The
penalty reduces the rank of the change. M depends only on the pre-trained weights, so the server and
all clients find the same M, and no index is ever sent. After a share of the rounds, entries that
have grown to |W'| >= τ stop: these entries get no gradient and keep their values.

Source: Hu et al., arXiv 2409.06633. In the paper τ is one number, and the entries that stop are
chosen once. In this module each slice (an adapted part of a layer) has its own τ, because the size
of the weights differs between models; τ is chosen so that M has a given share of the slice's
entries. After the share `switch` of the rounds, every step stops the entries that have grown,
because the server and the clients can see the growth in the values themselves. In each step, the
penalty is the nuclear norm of only one slice. In the paper a random slice is chosen; in this module
the slices take turns. Use no weight decay, because weight decay would change the entries that have
stopped.

The mean of the clients' tensors gives exactly the mean of their weights, because W' is linear in v.

Letters in shapes: n inputs, m outputs of an adapted part of a layer. For each slice, a client sends
int(share·m·n) numbers, and receives one number once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.entries import scattered, smallest
from fl_vitlora.finetuning.groups import BODY
from fl_vitlora.finetuning.part import Aggregated, BatchTerm
from fl_vitlora.finetuning.slices import AdaptedLinear, SliceAdapter, SlicePart
from fl_vitlora.state import State

STOPS = ".stops"
NARROW = 64  # a slice with at most this number of inputs or outputs has no penalty


class SaRAAdapter(SliceAdapter):
    """The trained entries of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        share: The share of the entries that are trained.

    Attributes:
        values: The values v, (k,), zero.
        stops: A scalar that only the server changes: 1 if entries that have grown stop, else 0.
        places: The indices of M in the flattened slice, (k,). If several entries have the same
            magnitude, the first entries are in M.
        threshold: The magnitude τ, a scalar: the smallest magnitude of an entry outside M.
    """

    places: Tensor
    threshold: Tensor

    def __init__(self, weight: Tensor, share: float) -> None:
        super().__init__()
        chosen = max(1, int(share * weight.numel()))
        places, threshold = smallest(weight, chosen)
        self.values = nn.Parameter(torch.zeros(chosen))
        self.stops = nn.Parameter(torch.zeros(()))
        self.register_buffer("places", places)
        self.register_buffer("threshold", threshold)

    def entries(self, weight: Tensor) -> Tensor:
        """Returns the values of W' at the trained places M, (k,)."""
        start = weight.flatten()[self.places]
        grown = (start + self.values.detach()).abs() >= self.threshold
        stopped = grown & (self.stops.detach().unsqueeze(-1) > 0)
        return start + torch.where(stopped, self.values.detach(), self.values)

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W', in which v is added to the entries of W at the places M."""
        return scattered(weight, self.places, self.entries(weight))

    def nuclear_norm(self, weight: Tensor) -> Tensor:
        """Returns ‖W'∘M‖_*, a scalar."""
        alone = scattered(torch.zeros_like(weight), self.places, self.entries(weight))
        norm: Tensor = torch.linalg.svdvals(alone).sum()
        return norm


@dataclass(frozen=True, kw_only=True)
class SaRA(SlicePart):
    """The part of a fine-tuning method that trains the smallest entries in every block.

    Attributes:
        share: The share of the entries of a slice that are trained.
        nuclear: The weight λ of the nuclear norm; 0 for no penalty.
        switch: The share of the rounds after which entries that have grown stop.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    stackable = False  # because `watch` adds a term in the steps of each client
    control = (STOPS,)

    share: float = setting(0.03, "Share of the entries that are trained.", "(0, 1]")
    nuclear: float = setting(5e-4, "Weight of the nuclear norm in the loss.", "[0, inf)")
    switch: float = setting(
        0.5, "Share of the rounds after which entries that have grown stop.", "[0, 1]"
    )

    def adapter(self, weight: Tensor) -> SaRAAdapter:
        """Returns the trained entries of one slice (an adapted part of a layer)."""
        return SaRAAdapter(weight, self.share)

    def group(self, name: str) -> str:
        """Returns the group `body`, whose learning rate is the rate of full fine-tuning."""
        del name
        return BODY

    def averages_exactly(self) -> bool:
        """Returns True, because W' is linear in v."""
        return True

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[BatchTerm]:
        """Adds to the loss, in each step, λ times the nuclear norm of one slice in turn."""
        turns = itertools.cycle(_wide_slices(model))

        def term(labels: Tensor) -> Tensor | float:
            del labels
            adapter, weight = next(turns, (None, None))
            if adapter is None or weight is None or not self.nuclear:
                return 0.0
            return self.nuclear * adapter.nuclear_norm(weight)

        yield term

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Stops entries that have grown, after the share `switch` of the rounds."""
        due = known.round >= self.switch * known.rounds
        waiting = {n: t for n, t in known.after.items() if n.endswith(STOPS) and not t}
        changed = {name: torch.ones_like(t) for name, t in waiting.items()} if due else {}
        return changed, dict(memory)


def _wide_slices(model: nn.Module) -> list[tuple[SaRAAdapter, Tensor]]:
    """Returns the adapters and frozen weights of the slices that have a penalty."""
    return [
        (adapter, weight)
        for layer in model.modules()
        if isinstance(layer, AdaptedLinear)
        for name, (start, end) in layer.slices.items()
        for adapter, weight in [(layer.adapters[name], layer.base.weight[start:end])]
        if isinstance(adapter, SaRAAdapter) and min(weight.shape) > NARROW
    ]
