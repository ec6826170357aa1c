"""The server's model: the exchanged tensors, and the sums that were added to frozen weights.

A strategy may merge a low-rank pair, which means that the product of the pair is added to a frozen
weight (`Strategy.aggregate`). The server and every client must add every merged pair exactly once.
The server stores the pairs of each round for clients that missed some rounds. The server also
stores the sum of all products, for evaluation and for clients that missed too many rounds.

Letters in shapes: R rank of a merged pair, m outputs and n inputs of the weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from fl_vitlora.lowrank import MERGED_A, MERGED_B
from fl_vitlora.state import State, count
from fl_vitlora.storage.trees import Tree

INCREMENT = ".increment"


@dataclass(frozen=True, kw_only=True)
class GlobalModel:
    """The model at the beginning of a round.

    Attributes:
        tensors: The exchanged tensors, by name.
        increments: A mapping from the path of each frozen weight to the sum of the products of all
            merged pairs, Σ merged_B·merged_A, (m, n).
        merges: The pairs of the last rounds, ``PATH.merged_A``, (R, n), and ``PATH.merged_B``,
            (m, R). Old pairs are removed when all pairs together have more numbers than
            `increments`.
        rounds: The number of all rounds in which pairs were merged, including rounds whose pairs
            are no longer stored.
        memory: The tensors that the fine-tuning method keeps at the server from round to round
            (`Part.decide`) and never sends.
    """

    tensors: State
    increments: State = field(default_factory=dict)
    merges: tuple[State, ...] = ()
    rounds: int = 0
    memory: State = field(default_factory=dict)

    def followed_by(self, tensors: State, merged: State) -> GlobalModel:
        """Returns the model of the next round, with new tensors and further merged pairs."""
        if not merged:
            return replace(self, tensors=tensors)
        increments = added(self.increments, merged)
        kept = (*self.merges, merged)
        while len(kept) > 1 and sum(map(count, kept)) > count(increments):
            kept = kept[1:]
        return replace(
            self, tensors=tensors, increments=increments, merges=kept, rounds=self.rounds + 1
        )

    def merges_since(self, rounds: int) -> tuple[State, ...] | None:
        """Returns the merged low-rank pairs of the rounds that a client has missed.

        Args:
            rounds: The number of merged rounds that the client already has.

        Returns:
            The pairs of each missed round. The result is None if some of the missed pairs are no
            longer stored; the client then needs the increments.
        """
        missed = self.rounds - rounds
        return None if missed > len(self.merges) else self.merges[len(self.merges) - missed :]

    def differs_from(self, other: GlobalModel) -> bool:
        """Returns True if the two models differ in a tensor or in the number of merged rounds."""
        same = all(torch.equal(t, other.tensors[name]) for name, t in self.tensors.items())
        return not same or self.rounds != other.rounds

    def snapshot(self) -> Tree:
        """Returns the whole model as a tree of values for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def restored(cls, tree: Tree) -> Self:
        """Returns the model that `snapshot` saved."""
        return cls(**{**tree, "merges": tuple(tree["merges"])})

    def stored(self) -> State:
        """Returns the exchanged tensors, and the increments (sums added to frozen weights)."""
        named = {f"{path}{INCREMENT}": tensor for path, tensor in self.increments.items()}
        return {**self.tensors, **named}

    @classmethod
    def of_stored(cls, state: State) -> Self:
        """Returns a model for evaluation from the tensors that `stored` returned.

        The returned model cannot be trained further, because the merged pairs and the method's
        memory are missing.
        """
        grown = {n.removesuffix(INCREMENT): t for n, t in state.items() if n.endswith(INCREMENT)}
        tensors = {n: t for n, t in state.items() if not n.endswith(INCREMENT)}
        return cls(tensors=tensors, increments=grown)


def split(tensors: State) -> tuple[State, State]:
    """Splits a strategy's result into the model's tensors and the merged low-rank pairs."""
    merged = {n: t for n, t in tensors.items() if n.endswith((MERGED_A, MERGED_B))}
    return {n: t for n, t in tensors.items() if n not in merged}, merged


def without_zeros(merged: State) -> State:
    """Returns the merged pairs without pairs in which one matrix is zero.

    If one matrix is zero, the pair does not change the frozen weight, so no client needs the pair.
    If a low-rank pair rests in a round, a strategy may still return a merged pair whose matrix B is
    zero.

    Example:
        >>> one = {"p.merged_A": torch.ones(1, 3), "p.merged_B": torch.zeros(2, 1)}
        >>> without_zeros(one)
        {}
    """
    zero = {name.rpartition(".")[0] for name, tensor in merged.items() if not tensor.any()}
    return {n: t for n, t in merged.items() if n.rpartition(".")[0] not in zero}


def join(merges: Sequence[State]) -> State:
    """Joins the low-rank pairs of several rounds by stacking the rows of A and the columns of B.

    Example:
        >>> one = {"p.merged_A": torch.ones(1, 3), "p.merged_B": torch.ones(2, 1)}
        >>> [tuple(tensor.shape) for tensor in join([one, one]).values()]
        [(2, 3), (2, 2)]
    """
    names = dict.fromkeys(name for merged in merges for name in merged)
    return {
        name: torch.cat(
            [merged[name] for merged in merges if name in merged],
            dim=0 if name.endswith(MERGED_A) else 1,
        )
        for name in names
    }


def added(increments: Mapping[str, torch.Tensor], merged: State) -> State:
    """Returns increments to which the products of merged pairs are added in float64."""
    new = dict(increments)
    for name in merged:
        if name.endswith(MERGED_A):
            path = name.removesuffix(MERGED_A)
            product = merged[path + MERGED_B].double() @ merged[name].double()
            new[path] = (product + new[path].double() if path in new else product).float()
    return new
