"""The layouts of messages: the names and shapes of their tensors, by record.

Layouts are not sent. Client and server each derive the layouts of a message once, from the layout
of all exchanged tensors, the client's rank and the scalars of the instruction. The scalars say
which tensors the client already has, which tensors are frozen in this round, and which pairs were
merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import torch

from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire import messages
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B, cut, paths
from fl_vitlora.state import State


@dataclass(frozen=True, kw_only=True)
class MessageLayouts:
    """The names and shapes of the tensors in one instruction and its reply, computed when needed.

    Attributes:
        exchanged: The names and shapes of all exchanged tensors.
        rank: The client's own rank; None if the client has the rank of the run.
        marks: The bit mask of the tensors that the client already has; empty if there are none.
        frozen: The endings of the names of tensors that are frozen in this round.
        ranks: The ranks of the merged low-rank pairs, one round after the other, in the order of
            the paths; 0 for a path without a pair.
    """

    exchanged: Layout
    rank: int | None = None
    marks: bytes = b""
    frozen: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any], exchanged: Layout, rank: int | None) -> Self:
        """Returns the layouts (names and shapes of tensors) of an instruction and its reply.

        Args:
            config: The scalars of the instruction.
            exchanged: The names and shapes of all exchanged tensors.
            rank: The client's own rank; None if the client has the rank of the run.
        """
        return cls(
            exchanged=exchanged,
            rank=rank,
            marks=cast(bytes, config.get(messages.CACHED, b"")),
            frozen=tuple(config.get(messages.FROZEN, ())),
            ranks=tuple(config.get(messages.MERGED_RANKS, ())),
        )

    def of_record(self, record: str) -> Layout:
        """Returns the names and shapes of the tensors in a record of the instruction.

        Raises:
            ValueError: If an instruction cannot have a record of this name, or if the ranks are
                impossible.
        """
        if record == messages.ARRAYS:
            return self.sent
        if record == messages.BROADCAST:
            return self.trained
        if record == messages.MERGED:
            return merged_layout(self.exchanged, self._rank_sums)
        if record == messages.INCREMENTS:
            marked = frozenset(path for path, rank in self._rank_sums.items() if rank)
            return products_layout(self.exchanged).only(marked)
        raise ValueError(f"message refused: record {record!r} was not asked for")

    def of_reply(self, record: str) -> Layout:
        """Returns the names and shapes of the tensors in a record of the reply.

        Raises:
            ValueError: If a reply cannot have a record of this name.
        """
        if record in (messages.ARRAYS, messages.REPORT):
            return self.trained
        raise ValueError(f"message refused: record {record!r} was not asked for")

    @cached_property
    def cached(self) -> frozenset[str]:
        """Returns the names of the tensors that are not sent because the client has them.

        Raises:
            ValueError: If the bit mask has the wrong length.
        """
        return self.exchanged.marked(self.marks) if self.marks else frozenset()

    @cached_property
    def merged_ranks(self) -> list[dict[str, int]]:
        """Returns, for each round, the ranks of the merged pairs that are sent, by path.

        Raises:
            ValueError: If a rank is not a whole number from 0.
        """
        if not all(type(rank) is int and rank >= 0 for rank in self.ranks):
            ranks = list(self.ranks)
            raise ValueError(
                f"message refused: {messages.MERGED_RANKS} must be whole numbers from 0, got "
                f"{ranks}"
            )
        pairs = pairs_of(self.exchanged)
        begins = range(0, len(self.ranks), max(1, len(pairs)))
        return [dict(zip(pairs, self.ranks[b : b + len(pairs)], strict=True)) for b in begins]

    @cached_property
    def whole(self) -> Layout:
        """Returns names and shapes of all exchanged tensors, cut to the client's rank."""
        return _cut(self.exchanged, self.rank)

    @cached_property
    def sent(self) -> Layout:
        """Returns names and shapes of the model's tensors that are sent to the client."""
        return self.whole.without(self.cached) if self.marks else self.whole

    @cached_property
    def trained(self) -> Layout:
        """Returns names and shapes of the tensors that are not frozen.

        A client sends back only these tensors, and a strategy broadcasts its own tensors only for
        these tensors.
        """
        return self.whole.without(self.resting) if self.frozen else self.whole

    @cached_property
    def resting(self) -> frozenset[str]:
        """Returns the names of the tensors that are frozen in this round."""
        return self.exchanged.ending_with(self.frozen)

    @property
    def _rank_sums(self) -> dict[str, int]:
        """Returns the sum of the merged pairs' ranks over all rounds, by path."""
        rounds = self.merged_ranks
        return {path: sum(each[path] for each in rounds) for path in pairs_of(self.exchanged)}


def pairs_of(layout: Layout) -> list[str]:
    """Returns the paths (names without ending) of all low-rank pairs, in the layout's order."""
    return paths(name for name, _ in layout.shapes)


def merged_layout(layout: Layout, ranks: Mapping[str, int]) -> Layout:
    """Returns names and shapes of merged pairs of the given ranks, in the order of the pairs."""
    shapes = dict(layout.shapes)
    merged: list[tuple[str, tuple[int, ...]]] = []
    for path, rank in ranks.items():
        if rank:
            merged.append((path + MERGED_A, (rank, shapes[path + A][1])))
            merged.append((path + MERGED_B, (shapes[path + B][0], rank)))
    return Layout(tuple(merged))


def products_layout(layout: Layout) -> Layout:
    """Returns names and shapes of the products B·A of all complete pairs, by the pairs' paths."""
    shapes = dict(layout.shapes)
    found = [path for path in paths(shapes) if path + B in shapes]
    return Layout(tuple((p, (shapes[p + B][0], shapes[p + A][1])) for p in found))


def part(joined: State, ranks: Sequence[Mapping[str, int]]) -> list[State]:
    """Splits the result of `global_model.join` into the pairs of each round.

    A client that adds the pairs round by round gets the same bits as a client that missed no round.

    Args:
        joined: The joined low-rank pairs of several rounds, as `join` returns them.
        ranks: The ranks R of each round's pairs, by path.

    Example:
        >>> import torch
        >>> from fl_vitlora.federation.global_model import join
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


def _cut(layout: Layout, rank: int | None) -> Layout:
    """Returns a layout (names and shapes) whose low-rank matrices are cut to a client's rank."""
    return layout if rank is None else Layout.of(cut(layout.empty(), rank))
