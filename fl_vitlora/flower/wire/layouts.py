"""Which tensors stand in a message: names and shapes by record, as its scalars tell them.

They do not travel themselves. Both ends derive them from the layout of all exchanged tensors, from
what an instruction says is cached, rests or was merged, and from the client's rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from flwr.app import ConfigRecord

from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire import messages
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B, cut, paths


def instruction_layouts(
    config: ConfigRecord, layout: Layout, rank: int | None
) -> dict[str, Layout]:
    """Tells names and shapes of the tensors that an instruction brings, by record.

    Args:
        config: Of the instruction.
        layout: Of all exchanged tensors.
        rank: The client's own, if it has one.

    Raises:
        ValueError: When it states ranks that are none.
    """
    rounds = merged_ranks(config, layout)
    ranks = {path: sum(each[path] for each in rounds) for path in pairs_of(layout)}
    marked = {path for path, rank in ranks.items() if rank}
    return {
        messages.ARRAYS: cut_layout(layout.without(spared_of(config, layout)), rank),
        messages.BROADCAST: cut_layout(layout, rank),
        messages.MERGED: merged_layout(layout, ranks),
        messages.INCREMENTS: products_layout(layout).only(frozenset(marked)),
    }


def update_layouts(frozen: tuple[str, ...], layout: Layout, rank: int | None) -> dict[str, Layout]:
    """Tells names and shapes of the tensors that an update brings, by record.

    Args:
        frozen: Endings of those that rested.
        layout: Of all exchanged tensors.
        rank: The client's own, if it has one.
    """
    sent = cut_layout(layout.without(layout.ending_with(frozen)), rank)
    return {messages.ARRAYS: sent, messages.REPORT: sent}


def cut_layout(layout: Layout, rank: int | None) -> Layout:
    """Tells the shapes that a client of a rank has."""
    return layout if rank is None else Layout.of(cut(layout.empty(), rank))


def round_of(config: ConfigRecord) -> int:
    """Reads of which round an instruction is."""
    return int(number_of(config, messages.SERVER_ROUND) or 0)


def frozen_of(config: ConfigRecord) -> tuple[str, ...]:
    """Reads the endings of what rests."""
    return tuple(cast(list[str], config.get(messages.FROZEN, [])))


def taken_of(config: ConfigRecord) -> int | None:
    """Reads the round of the client's last update that the server took, if it says so."""
    return None if messages.TAKEN not in config else int(number_of(config, messages.TAKEN) or 0)


def spared_of(config: ConfigRecord, layout: Layout) -> frozenset[str]:
    """Reads which tensors are not sent, as the client has them."""
    if messages.SPARED not in config:
        return frozenset()
    return layout.marked(cast(bytes, config[messages.SPARED]))


def pairs_of(layout: Layout) -> list[str]:
    """Lists the paths of all low-rank pairs, in the layout's order."""
    return paths(name for name, _ in layout.shapes)


def merged_ranks(config: ConfigRecord, layout: Layout) -> list[dict[str, int]]:
    """Reads the ranks of the merged pairs that are sent: of each round, by path.

    Raises:
        ValueError: When they are none.
    """
    pairs, ranks = pairs_of(layout), integers_of(config, messages.MERGED_RANKS)
    if not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise ValueError(f"message refused: {messages.MERGED_RANKS} are {ranks}")
    begins = range(0, len(ranks), max(1, len(pairs)))
    return [dict(zip(pairs, ranks[b : b + len(pairs)], strict=True)) for b in begins]


def merged_layout(layout: Layout, ranks: Mapping[str, int]) -> Layout:
    """Tells names and shapes of merged pairs by their ranks, in the order of pairs."""
    shapes = dict(layout.shapes)
    merged: list[tuple[str, tuple[int, ...]]] = []
    for path, rank in ranks.items():
        if rank:
            merged.append((path + MERGED_A, (rank, shapes[path + A][1])))
            merged.append((path + MERGED_B, (shapes[path + B][0], rank)))
    return Layout(tuple(merged))


def products_layout(layout: Layout) -> Layout:
    """Tells names and shapes of the products of all whole pairs, by path."""
    shapes = dict(layout.shapes)
    found = [path for path in paths(shapes) if path + B in shapes]
    return Layout(tuple((p, (shapes[p + B][0], shapes[p + A][1])) for p in found))


def number_of(config: ConfigRecord, name: str) -> float | None:
    """Reads a number, if it is there."""
    return None if name not in config else float(cast(float, config[name]))


def integers_of(config: ConfigRecord, name: str) -> list[int]:
    """Reads a list of whole numbers; what is not there is empty."""
    return list(cast(list[int], config.get(name, [])))
