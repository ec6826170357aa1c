"""The server's model as a value: the exchanged tensors, and what was merged into frozen weights.

Strategies may move the product of a low-rank pair into the frozen weight that it stands on
(`Strategy.aggregate`). Each party must apply every such pair once; so they are kept round by round,
for whoever missed some, and as their sum, for whoever evaluates or missed too many.

R rank of a merged pair, m outputs and n inputs of the weight.
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
    """What a round begins with.

    Attributes:
        tensors: The exchanged ones.
        increments: All that was merged, Σ merged_B·merged_A (m, n), by path.
        merges: The pairs of the last rounds, ``PATH.merged_A`` (R, n) and ``PATH.merged_B`` (m, R),
            as long as they are shorter than their sum.
        rounds: How many rounds have merged any, with those whose pairs are kept no longer.
    """

    tensors: State
    increments: State = field(default_factory=dict)
    merges: tuple[State, ...] = ()
    rounds: int = 0

    def followed_by(self, tensors: State, merged: State) -> GlobalModel:
        """Returns the next round's model."""
        if not merged:
            return replace(self, tensors=tensors)
        increments = added(self.increments, merged)
        kept = (*self.merges, merged)
        while len(kept) > 1 and sum(map(count, kept)) > count(increments):
            kept = kept[1:]
        return GlobalModel(
            tensors=tensors, increments=increments, merges=kept, rounds=self.rounds + 1
        )

    def merges_since(self, rounds: int) -> tuple[State, ...] | None:
        """Returns what was merged since there were so many rounds of it.

        Args:
            rounds: How many somebody has already.

        Returns:
            The pairs of each round; None where several rounds' pairs are longer than all
            increments, or are kept no longer, so that whoever missed them is better served with
            those.
        """
        missed = self.rounds - rounds
        return None if missed > len(self.merges) else self.merges[len(self.merges) - missed :]

    def differs_from(self, other: GlobalModel) -> bool:
        """Returns True if anything moved."""
        same = all(torch.equal(t, other.tensors[name]) for name, t in self.tensors.items())
        return not same or self.rounds != other.rounds

    def snapshot(self) -> Tree:
        """Returns all of it, for a checkpoint."""
        return dict(vars(self))

    @classmethod
    def restored(cls, tree: Tree) -> Self:
        """Makes the model of which `snapshot` was taken."""
        return cls(**{**tree, "merges": tuple(tree["merges"])})

    def stored(self) -> State:
        """Returns all that makes the model out of the public one, under names of their own."""
        named = {f"{path}{INCREMENT}": tensor for path, tensor in self.increments.items()}
        return {**self.tensors, **named}


def split(tensors: State) -> tuple[State, State]:
    """Parts what a strategy returned into the model's tensors and merged pairs."""
    merged = {n: t for n, t in tensors.items() if n.endswith((MERGED_A, MERGED_B))}
    return {n: t for n, t in tensors.items() if n not in merged}, merged


def join(merges: Sequence[State]) -> State:
    """Writes several rounds' merged pairs as one: A's below each other, B's beside each other.

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


def part(joined: State, ranks: Sequence[Mapping[str, int]]) -> list[State]:
    """Parts what `join` wrote into the pairs of each round.

    Whoever adds them one after the other has what it would have had without missing a round, to the
    last bit.

    Args:
        joined: Pairs of several rounds.
        ranks: R of each round's pairs, by path.

    Example:
        >>> one = {"p.merged_A": torch.ones(1, 3), "p.merged_B": torch.ones(2, 1)}
        >>> [[tuple(t.shape) for t in p.values()] for p in part(join([one, one]), [{"p": 1}] * 2)]
        [[(1, 3), (2, 1)], [(1, 3), (2, 1)]]
    """
    rounds: list[State] = [{} for _ in ranks]
    for name, tensor in joined.items():
        path, dim = name.rpartition(".")[0], 0 if name.endswith(MERGED_A) else 1
        pieces = torch.split(tensor, [each.get(path, 0) for each in ranks], dim)
        for pairs, piece in zip(rounds, pieces, strict=True):
            if piece.numel():
                pairs[name] = piece.contiguous()
    return rounds


def added(increments: Mapping[str, torch.Tensor], merged: State) -> State:
    """Adds merged pairs to increments; sums in float64 are stored as float32."""
    new = dict(increments)
    for name in merged:
        if name.endswith(MERGED_A):
            path = name.removesuffix(MERGED_A)
            product = merged[path + MERGED_B].double() @ merged[name].double()
            new[path] = (product + new[path].double() if path in new else product).float()
    return new
