"""Layer-wise descent: each block must reduce the loss by at least a given share.

After every block, the last normalisation and the head of the model compute logits from the outputs
of the block. f_l is the cross-entropy of the logits after block l, and f_0 is the cross-entropy for
the input of the first block. The constraint is f_l ≤ (1 - α)·f_{l-1} for the means over all images.
The constraints add this sum to a client's loss:

    Σ λ_l · (f_l - (1 - α)·f_{l-1}),    l = 1, ..., L

Clients measure the means of f_l over the images of their steps. The duals λ are zero at the start.
The server averages the means, and changes the duals once in a round:

    λ_l ← min(λ_max, [λ_l + η·(f_l - (1 - α)·f_{l-1} - λ_l / ρ)]₊)

The amount λ_l / ρ is the slack of the constraint: the larger λ_l, the further the constraint may be
violated. In the first rounds the duals stay zero, because the logits of a new head mean nothing.
With η = 0, training is bit for bit the same as without this part.

Whether the mean of the clients' tensors gives the mean of their weights depends on the other parts
of the method. A client sends L + 1 means, and receives the L duals if they have changed. The server
needs only means over clients, so secure aggregation works. This part trains only the head, so it is
used together with another part: ``lora+descent``. Clients cannot share a batch, because every
client would need logits of its own head after each block. Therefore clients are trained one by one.

The weight of f_l in the sum is λ_l - (1 - α)·λ_{l+1}. If this weight is negative, training can meet
a constraint by making an earlier loss larger. In one measurement with all duals at 1, f_0 rose from
2.6 to 80. Therefore, by default, the loss f_{l-1} before block l gets no gradient from the
constraint. With `hold_earlier=false`, f_{l-1} gets the gradient, as in the paper.

Source: arXiv 2601.17257, "A Constrained Optimization Perspective of Unrolled Transformers". The
constraint (descent in expectation at a geometric rate) and the training of weights and duals come
from the paper. Our own choices are the slack, the logits of the shared head, the change of the
duals once in a round, and all default values.

Letters in shapes: B images of a batch, L blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.dual_ascent import ascended
from fl_vitlora.finetuning.groups import CONTROL, LORA, exchanged_name
from fl_vitlora.finetuning.part import Aggregated, BatchTerm, Part
from fl_vitlora.finetuning.readouts import block_outputs, check_readable, readout_losses
from fl_vitlora.finetuning.round_means import RoundMean
from fl_vitlora.finetuning.targets import blocks_of
from fl_vitlora.state import State

PLACE = "descent"  # the name of the module in the model
DUALS, READOUTS = f"{PLACE}.duals", f"{PLACE}.readouts"


class Constraints(nn.Module):
    """The dual variables, and the losses that the constraints compare; no forward pass uses them.

    Args:
        blocks: The number of blocks L.

    Attributes:
        duals: The duals λ_1 ... λ_L, (L,).
        readouts: The means of the losses f_0 ... f_L, (L + 1,); zero before the first round.
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.duals = nn.Parameter(torch.zeros(blocks))
        self.readouts = nn.Parameter(torch.zeros(blocks + 1))


@dataclass(frozen=True, kw_only=True)
class LayerwiseDescent(Part):
    """The part of a fine-tuning method that constrains the losses after the blocks.

    Attributes:
        fall: The share α by which the loss must fall in each block.
        dual_rate: The size η of a step of the duals.
        resilience: The weight ρ of the slacks; large values make the constraints hard.
        limit: The largest dual λ_max.
        warm_up: The number of rounds after which the duals first change.
        hold_earlier: True if f_{l-1} gets no gradient from the constraint on f_l.
    """

    control = (DUALS,)
    measured = (READOUTS,)

    fall: float = setting(0.05, "Share by which the loss must fall in each block.", "[0, 1)")
    dual_rate: float = setting(0.01, "Size of the duals' step in each round.", "[0, inf)")
    resilience: float = setting(10.0, "Weight of the slacks of the constraints.", "(0, inf)")
    limit: float = setting(10.0, "Largest dual.", "(0, inf)")
    warm_up: int = setting(2, "Number of rounds after which the duals first change.", "[1, inf)")
    hold_earlier: bool = setting(True, "True if a constraint must not make an earlier loss larger.")

    def attach(self, model: nn.Module) -> None:
        """Adds the duals and the means of the losses to the model.

        Raises:
            UserError: If the model has no blocks, or no normalisation and head after them.
        """
        check_readable(model, "descent")
        model.add_module(PLACE, Constraints(len(blocks_of(model))))

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the duals and of the means of the losses."""
        del model
        return (DUALS, READOUTS)

    def group(self, name: str) -> str:
        """Returns the group `lora` for the means, which are sent without a codec by default."""
        del name
        return LORA

    def violations(self, losses: Tensor) -> Tensor:
        """Returns f_l - (1 - α)·f_{l-1}, (L,), for the losses f_0 ... f_L."""
        earlier = losses[:-1].detach() if self.hold_earlier else losses[:-1]
        return losses[1:] - (1 - self.fall) * earlier

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[BatchTerm]:
        """Adds the constraints to the loss, and measures the means of the losses f_l."""
        own: Any = model.get_submodule(PLACE)
        duals, constrained = own.duals.detach(), bool(own.duals.any())
        mean = RoundMean(own.readouts)

        with block_outputs(model) as outputs:

            def term(labels: Tensor) -> Tensor | float:
                with torch.set_grad_enabled(constrained):
                    losses = readout_losses(model, outputs, labels)
                mean.add(losses.detach().double() * len(labels), len(labels))
                return (duals * self.violations(losses)).sum() if constrained else 0.0

            yield term
        mean.store()

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Changes the duals after the warm-up rounds."""
        name = exchanged_name(DUALS, CONTROL)
        losses, duals = known.after[exchanged_name(READOUTS, LORA)], known.after[name]
        if known.round < self.warm_up or not losses.any():
            return {}, dict(memory)
        violations = self.violations(losses)
        new = ascended(duals, violations, self.dual_rate, self.resilience, self.limit)
        return {name: new}, dict(memory)

    def merge(self, model: nn.Module) -> None:
        """Removes the duals and the measured means of the losses from the model."""
        delattr(model, PLACE)
