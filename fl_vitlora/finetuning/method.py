"""A fine-tuning method, which is a sum of parts such as ``lora+patch_embed``.

The module `part` has the rules for a part. Most functions of `Method` call the function of the same
name of all parts, and combine the results.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from fl_vitlora.finetuning.part import EVERYTHING, Aggregated, BatchTerm, Part
from fl_vitlora.state import State

OF_PART = "/"  # stands between the name of a part and the name of a tensor in the common memory


@dataclass(frozen=True, kw_only=True)
class Method:
    """A fine-tuning method: a sum of parts, which are trained together with the head.

    Attributes:
        name: The name of the method, such as ``lora+patch_embed``.
        parts: Pairs of a name and a part, in the order of the sum.
    """

    name: str
    parts: tuple[tuple[str, Part], ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """Returns the sentences of all parts that are shown to the user when a run begins."""
        return tuple(note for _, part in self.parts if (note := part.note()))

    @property
    def low_rank(self) -> bool:
        """Returns True if a part adds low-rank pairs."""
        return any(part.low_rank for _, part in self.parts)

    @property
    def trains_patch_embedding(self) -> bool:
        """Returns True if a part trains the patch embedding."""
        return any(part.trains_patch_embedding for _, part in self.parts)

    @property
    def stackable(self) -> bool:
        """Returns True if several clients can be trained in one batch."""
        return all(part.stackable for _, part in self.parts)

    @property
    def frozen_backbone(self) -> bool:
        """Returns True if no part changes what the backbone computes."""
        return all(part.frozen_backbone for _, part in self.parts)

    @property
    def personal(self) -> tuple[str, ...]:
        """Returns the endings of the names of the tensors that clients train but never send."""
        return tuple(ending for _, part in self.parts for ending in part.personal)

    @property
    def control(self) -> tuple[str, ...]:
        """Returns the endings of the names of the tensors that only the server changes."""
        return tuple(ending for _, part in self.parts for ending in part.control)

    @property
    def measured(self) -> tuple[str, ...]:
        """Returns the endings of the names of the tensors that clients measure; see `Part`."""
        return tuple(ending for _, part in self.parts for ending in part.measured)

    def only_measures(self, names: Collection[str]) -> bool:
        """Returns True if clients measure all of the given tensors, and train none of the tensors.

        Args:
            names: At least one name. The names are those of all exchanged tensors that do not rest
                in a round.
        """
        return all(name.endswith(self.measured) for name in names)

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[tuple[BatchTerm, ...]]:
        """Lets all parts watch the model during the steps of a round; see `Part.watch`."""
        watching = [part for _, part in self.parts if type(part).watch is not Part.watch]
        with ExitStack() as stack:
            yield tuple(stack.enter_context(part.watch(model)) for part in watching)

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns endings of names of tensors that rest in a round; see `Part.rests`.

        Args:
            server_round: The number of the round, from 1.
            memory: The memory of all parts, as `decide` returned it; empty at first.
        """
        endings = [*self.control]
        for name, part in self.parts:
            endings += part.rests(server_round, _own(memory, name))
        return tuple(dict.fromkeys(endings))

    def resting(
        self, server_round: int, memory: Mapping[str, Tensor], names: Iterable[str]
    ) -> tuple[str, ...]:
        """Returns the endings of `rests`, in which `EVERYTHING` is replaced by names of tensors.

        Args:
            server_round: The number of the round, from 1.
            memory: The memory of all parts, as `decide` returned it; empty at first.
            names: The names of all exchanged tensors.
        """
        endings = self.rests(server_round, memory)
        if not set(EVERYTHING) <= set(endings):
            return endings
        return tuple(name for name in names if not name.endswith(self.measured))

    def resting_at_first(self, names: Collection[str]) -> tuple[str, ...]:
        """Returns the result of `resting` for the first round in which clients train a tensor."""
        trained = [name for name in names if not name.endswith(self.measured)]
        rests = (self.resting(number, {}, names) for number in itertools.count(1))
        return next(r for r in rests if not all(name.endswith(r) for name in trained))

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Returns the tensors that the parts change, and the new memory of all parts.

        The docstring of `Part.decide` explains what a part can decide.
        """
        changed, kept = State(), State()
        for name, part in self.parts:
            tensors, own = part.decide(known, _own(memory, name))
            changed |= tensors
            kept |= {f"{name}{OF_PART}{key}": tensor for key, tensor in own.items()}
        return changed, kept

    def retract(self, tensors: State) -> State:
        """Applies `Part.retract` of all parts to aggregated tensors, and returns all tensors."""
        for _, part in self.parts:
            tensors = {**tensors, **part.retract(tensors)}
        return tensors

    @property
    def penalising(self) -> tuple[Part, ...]:
        """Returns the parts that add a term to a client's loss."""
        return tuple(part for _, part in self.parts if type(part).penalty is not Part.penalty)

    @property
    def retracts(self) -> bool:
        """Returns True if a part defines `retract`, which may change aggregated tensors."""
        return any(type(part).retract is not Part.retract for _, part in self.parts)

    @property
    def averages_exactly(self) -> bool:
        """Returns True if averaging is exact for the combination of all parts.

        `Part.averages_exactly` says whether averaging is exact for one part. For several parts,
        averaging is exact only if no part multiplies weights that another part trains.
        """
        alone = len(self.parts) == 1 or not any(part.multiplies for _, part in self.parts)
        return alone and all(part.averages_exactly() for _, part in self.parts)

    @property
    def decides(self) -> bool:
        """Returns True if a part defines `decide`, which the server calls after an aggregation."""
        return any(type(part).decide is not Part.decide for _, part in self.parts)

    @property
    def has_rests(self) -> bool:
        """Returns True if there may be rounds in which some tensors rest."""
        return bool(self.control) or any(
            type(part).rests is not Part.rests for _, part in self.parts
        )


def _own(memory: Mapping[str, Tensor], part: str) -> State:
    """Returns the tensors of one part from the common memory, without the prefix of the part."""
    start = f"{part}{OF_PART}"
    return {n.removeprefix(start): t for n, t in memory.items() if n.startswith(start)}
