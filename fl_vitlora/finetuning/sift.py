"""SIFT: only the entries of a weight that have the largest gradients are trained.

    W' = W + scatter(I, v),    k = |I| = |v| = min(int(ρ·m·n) + 1, m·n)

v holds k trained values. ρ, the setting `share`, is the share of the entries that are trained. I
holds the places of the k entries of W whose values change most in the first round. In round 1
clients train a dense change D of every slice, W' = W + D; D starts at zero. The server averages D,
takes the k entries of D with the largest magnitude in each slice, and sends the places of these
entries to every client once. From round 2 on, only the values v are trained and sent; v starts with
the chosen values of D. If several entries of D have the same magnitude, the first of these entries
are chosen. Therefore all machines choose the same entries.

Source: Song et al., arXiv 2312.11875. The paper chooses the entries by the gradient of the first
batches. We use the averaged change of a whole round instead, because the server then needs only the
sum of the clients' changes. Therefore secure aggregation works, and the changes of round 1 at the
chosen places are not lost. The cost is that every client sends one dense message, in round 1. The
chosen places reveal something about the images of all clients together.

The mean of the clients' tensors gives exactly the mean of their weights, because W' is linear in v
and in D.

Letters in shapes: n inputs, m outputs of an adapted part of a layer. For each such part (a slice),
a client sends m·n numbers in round 1 and k numbers in later rounds; every client receives k places
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.entries import largest, scattered
from fl_vitlora.finetuning.groups import BODY, CONTROL, exchanged_name
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.slices import SliceAdapter, SlicePart
from fl_vitlora.state import State

DENSE, VALUES, PLACES = ".dense", ".values", ".places"
CHOSEN = "chosen"  # the name of the only tensor in the memory
LARGEST = 2**24  # float32 represents all whole numbers up to this number exactly


class SIFTAdapter(SliceAdapter):
    """The trained entries of one slice (an adapted part of a layer).

    Args:
        weight: The pre-trained weight W of the slice, (m, n).
        share: The share ρ of the entries that are trained after the first round.

    Attributes:
        dense: The change D of all entries, (m, n), zero; trained only in round 1.
        values: The values v, (k,), zero.
        places: The places I, (k,), as whole numbers: indices in the flattened slice. Only the
            server changes I. Before the server has chosen places, I is the numbers 0 to k - 1.

    Raises:
        UserError: If the slice has so many entries that float32 cannot represent their indices.
    """

    def __init__(self, weight: Tensor, share: float) -> None:
        super().__init__()
        if weight.numel() > LARGEST:
            raise UserError(
                f"method sift: a slice of a layer has {weight.numel()} entries; expected at most "
                f"{LARGEST}; choose other finetuning.targets"
            )
        chosen = min(int(share * weight.numel()) + 1, weight.numel())
        self.dense = nn.Parameter(torch.zeros(weight.shape))
        self.values = nn.Parameter(torch.zeros(chosen))
        self.places = nn.Parameter(torch.arange(chosen, dtype=torch.float32))

    def adapted(self, weight: Tensor) -> Tensor:
        """Returns W' = W + D + scatter(I, v)."""
        places = self.places.detach().long()
        return weight + self.dense + scattered(torch.zeros_like(weight), places, self.values)


@dataclass(frozen=True, kw_only=True)
class SIFT(SlicePart):
    """The part of a fine-tuning method that trains a sparse change in every block.

    The paper adapts q, k, v and proj: ``finetuning.targets=[q,k,v,proj]``.

    Attributes:
        share: The share ρ of the entries of a slice that are trained after the first round.
        targets: The names of the adapted slices of each block, such as q or fc1 (`targets.LAYERS`).
    """

    control = (PLACES,)

    share: float = setting(
        0.008, "Share of the entries that are trained after the first round.", "(0, 1]"
    )

    def adapter(self, weight: Tensor) -> SIFTAdapter:
        """Returns the trained entries of one slice (an adapted part of a layer)."""
        return SIFTAdapter(weight, self.share)

    def group(self, name: str) -> str:
        """Returns the group `body`, whose learning rate is the rate of full fine-tuning."""
        del name
        return BODY

    def averages_exactly(self) -> bool:
        """Returns True, because W' is linear in D and in v."""
        return True

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns the values v before the entries are chosen, and the dense change D afterwards."""
        del server_round
        return (DENSE,) if CHOSEN in memory else (VALUES,)

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Chooses the entries after the first round in which a tensor D has changed."""
        dense = {name: t for name, t in known.after.items() if name.endswith(DENSE)}
        if CHOSEN in memory or not any(change.any() for change in dense.values()):
            return {}, dict(memory)
        changed = State()
        for name, change in dense.items():
            values = name.removesuffix(DENSE) + VALUES
            places = exchanged_name(name.removesuffix(DENSE) + PLACES, CONTROL)
            chosen = largest(change, known.after[values].numel())
            changed[places] = chosen.to(torch.float32)
            changed[values] = change.flatten()[chosen]
            changed[name] = torch.zeros_like(change)
        return changed, {CHOSEN: torch.ones(())}
