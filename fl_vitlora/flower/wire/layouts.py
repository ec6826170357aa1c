"""The layouts of messages: the names and shapes of their tensors, by record.

Layouts are not sent. Both sides derive them from the layout of all exchanged tensors, the
instruction and the client's rank. The instruction says which tensors are cached, rest or were
merged. Messages of one kind have the same layouts, so each is derived once and cached.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from flwr.app import ConfigRecord

from fl_vitlora.communication.packing import Layout
from fl_vitlora.federation.instruction import SERVER_ROUND
from fl_vitlora.flower.wire import messages
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B, cut, paths

MOST_KEPT = 64  # layouts that a process keeps; a run has a few kinds of messages


def instruction_layouts(
    config: ConfigRecord, layout: Layout, rank: int | None
) -> Mapping[str, Layout]:
    """Returns the layouts of an instruction's tensors, by record.

    Args:
        config: The scalars of the instruction.
        layout: The layout of all exchanged tensors.
        rank: The client's own rank; None if it has the run's.

    Raises:
        ValueError: If the instruction states impossible ranks.
    """
    rounds = merged_ranks(config, layout)
    ranks = tuple(sum(each[path] for each in rounds) for path in pairs_of(layout))
    return _instruction_layouts(cached_of(config, layout), ranks, layout, rank)


@functools.lru_cache(maxsize=MOST_KEPT)
def _instruction_layouts(
    cached: frozenset[str], ranks: tuple[int, ...], layout: Layout, rank: int | None
) -> Mapping[str, Layout]:
    """Derives the layouts of an instruction.

    Args:
        cached: The names of the tensors that are not sent.
        ranks: The rank of the merged pair at each path, 0 for none.
        layout: The layout of all exchanged tensors.
        rank: The client's own rank; None if it has the run's.
    """
    merged = dict(zip(pairs_of(layout), ranks, strict=True))
    marked = frozenset(path for path, rank in merged.items() if rank)
    return MappingProxyType(
        {
            messages.ARRAYS: cut_layout(layout.without(cached), rank),
            messages.BROADCAST: cut_layout(layout, rank),
            messages.MERGED: merged_layout(layout, merged),
            messages.INCREMENTS: products_layout(layout).only(marked),
        }
    )


@functools.lru_cache(maxsize=MOST_KEPT)
def update_layouts(
    frozen: tuple[str, ...], layout: Layout, rank: int | None
) -> Mapping[str, Layout]:
    """Returns the layouts of an update's tensors, by record.

    Args:
        frozen: The endings of the names of tensors that rested.
        layout: The layout of all exchanged tensors.
        rank: The client's own rank; None if it has the run's.
    """
    sent = cut_layout(layout.without(layout.ending_with(frozen)), rank)
    return MappingProxyType({messages.ARRAYS: sent, messages.REPORT: sent})


@functools.lru_cache(maxsize=MOST_KEPT)
def cut_layout(layout: Layout, rank: int | None) -> Layout:
    """Returns the layout whose low-rank matrices are cut to a client's rank."""
    return layout if rank is None else Layout.of(cut(layout.empty(), rank))


def round_of(config: ConfigRecord) -> int:
    """Returns the round of an instruction."""
    return int(number_of(config, SERVER_ROUND) or 0)


def frozen_of(config: ConfigRecord) -> tuple[str, ...]:
    """Returns the endings of the names of tensors that rest."""
    return tuple(cast(list[str], config.get(messages.FROZEN, [])))


def restarted_of(config: ConfigRecord) -> tuple[str, ...]:
    """Returns the endings of the names of tensors that restart in every round."""
    return tuple(cast(list[str], config.get(messages.RESTARTED, [])))


def taken_of(config: ConfigRecord) -> int | None:
    """Returns the round of the client's last update that the server took; None if not stated."""
    return None if messages.TAKEN not in config else int(number_of(config, messages.TAKEN) or 0)


def cached_of(config: ConfigRecord, layout: Layout) -> frozenset[str]:
    """Returns the names of the tensors that are not sent because the client has them."""
    if messages.CACHED not in config:
        return frozenset()
    return layout.marked(cast(bytes, config[messages.CACHED]))


def pairs_of(layout: Layout) -> list[str]:
    """Returns the paths of all low-rank pairs, in the layout's order."""
    return paths(name for name, _ in layout.shapes)


def merged_ranks(config: ConfigRecord, layout: Layout) -> list[dict[str, int]]:
    """Returns the ranks of the merged pairs that are sent, by path, for each round.

    Raises:
        ValueError: If a rank is not a whole number from 0.
    """
    pairs, ranks = pairs_of(layout), integers_of(config, messages.MERGED_RANKS)
    if not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise ValueError(f"message refused: {messages.MERGED_RANKS} are {ranks}")
    begins = range(0, len(ranks), max(1, len(pairs)))
    return [dict(zip(pairs, ranks[b : b + len(pairs)], strict=True)) for b in begins]


def merged_layout(layout: Layout, ranks: Mapping[str, int]) -> Layout:
    """Returns the layout of merged pairs of the given ranks, in the order of the pairs."""
    shapes = dict(layout.shapes)
    merged: list[tuple[str, tuple[int, ...]]] = []
    for path, rank in ranks.items():
        if rank:
            merged.append((path + MERGED_A, (rank, shapes[path + A][1])))
            merged.append((path + MERGED_B, (shapes[path + B][0], rank)))
    return Layout(tuple(merged))


def products_layout(layout: Layout) -> Layout:
    """Returns the layout of the products of all complete pairs, named by their paths."""
    shapes = dict(layout.shapes)
    found = [path for path in paths(shapes) if path + B in shapes]
    return Layout(tuple((p, (shapes[p + B][0], shapes[p + A][1])) for p in found))


def number_of(config: ConfigRecord, name: str) -> float | None:
    """Returns a number of the instruction; None if it is missing."""
    return None if name not in config else float(cast(float, config[name]))


def integers_of(config: ConfigRecord, name: str) -> list[int]:
    """Returns a list of whole numbers of the instruction; an empty one if it is missing."""
    return list(cast(list[int], config.get(name, [])))
