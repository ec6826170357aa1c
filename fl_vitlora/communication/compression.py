"""Coded tensors: group by group through codecs, and what is withheld is kept for later.

    target   = delta + residual          what the other side should have moved by
    sent     = decode(encode(target))
    residual = target - sent             is added to the next round's delta: error feedback

With error feedback a codec need not be exact, nor unbiased: what it withholds in one round comes in
a later one. A codec sees all tensors of a group as one vector. What a part does not hold has not
moved.

Source: Stich et al., arXiv 1809.07599; Karimireddy et al., arXiv 1901.09847.
"""

from __future__ import annotations

import functools

import numpy as np

from fl_vitlora.communication.codecs import Floats, parse
from fl_vitlora.communication.groups import GROUPS, group_of
from fl_vitlora.communication.lanes import Lanes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Part, Section
from fl_vitlora.state import State


def code(state: State, layout: Layout, lanes: Lanes, draw: np.random.Generator) -> Part:
    """Encodes tensors.

    Args:
        state: Some of the layout's tensors, float32.
        layout: Of all that the other side may expect.
        lanes: With the codec of each group.
        draw: Of what codecs leave to chance.

    Raises:
        ValueError: When a tensor holds NaN or infinity, or is not of the layout.
    """
    return send(state, layout, lanes, draw)[0]


def send(
    state: State, layout: Layout, lanes: Lanes, draw: np.random.Generator
) -> tuple[Part, State]:
    """Encodes tensors, and tells what will be decoded; as for `code`."""
    here = layout.only(frozenset(state))
    if tuple(state) != here.names:
        raise ValueError("tensors to be sent must be the layout's, in its order")
    sections: list[Section] = []
    arrives: State = {}
    for group, part in _by_group(here).items():
        values = np.concatenate([state[n].detach().float().numpy().ravel() for n in part.names])
        codec = lanes.by_group[group].codec
        body, arriving = codec.send(values, tuple(shape for _, shape in part.shapes), draw)
        sections.append(Section(group=group, codec=str(codec), body=body))
        arrives |= part.shaped(arriving)
    marks = b"" if here == layout else layout.mark(frozenset(here.names))
    sent = Part(digest=layout.digest, marks=marks, sections=tuple(sections))
    return sent, {name: arrives[name] for name in here.names}


def decode(part: Part, layout: Layout) -> State:
    """Decodes what `code` wrote, by what the part says of itself.

    Args:
        part: As it came.
        layout: Of all that may be in it.

    Returns:
        The tensors that are in it, in the layout's order, float32.

    Raises:
        ValueError: When it was made for other tensors, or is not what a codec writes.
    """
    if part.digest != layout.digest:
        raise ValueError(
            f"message refused: it holds other tensors than the {len(layout.shapes)} expected; do "
            "client and server build the same model?"
        )
    here = layout.only(layout.marked(part.marks)) if part.marks else layout
    groups = _by_group(here)
    if [section.group for section in part.sections] != list(groups):
        raise ValueError("message refused: it holds other groups of tensors than it says")
    found: State = {}
    for section, expected in zip(part.sections, groups.values(), strict=True):
        values = _decode(section, expected)
        found |= expected.shaped(values)
    return {name: found[name] for name in here.names}


def is_exact(part: Part) -> bool:
    """Tells whether nothing is lost of a part's tensors, each of which takes its four bytes.

    Raises:
        ValueError: When it names codecs that there are not.
    """
    return all(parse(section.codec).lossless for section in part.sections)


def _decode(section: Section, layout: Layout) -> Floats:
    """Decodes a group's body with the codec that it names."""
    try:
        codec = parse(section.codec)
        return codec.decode(section.body, tuple(shape for _, shape in layout.shapes))
    except ValueError as error:
        raise ValueError(f"message refused: {section.group}: {error}") from None


@functools.lru_cache(maxsize=32)
def _by_group(layout: Layout) -> dict[str, Layout]:
    """Parts a layout into those of its groups, in their order."""
    groups = {name: group_of(name) for name in layout.names}
    parted = {g: layout.only(frozenset(n for n in groups if groups[n] == g)) for g in GROUPS}
    return {group: part for group, part in parted.items() if part.shapes}


def compress(
    delta: State,
    residual: State,
    layout: Layout,
    *,
    lanes: Lanes,
    travelling: frozenset[str],
    draw: np.random.Generator,
) -> tuple[Part, State]:
    """Encodes a change and what was withheld of earlier ones.

    Args:
        delta: All of the layout's tensors.
        residual: What was withheld, of some tensors, of the layout or not.
        layout: Of the delta.
        lanes: With the codec of each group.
        travelling: Which tensors travel in this round (`Lanes.open`).
        draw: Of what codecs leave to chance.

    Returns:
        What is sent, and what is withheld now; of exact lanes nothing is.
    """
    target = {n: t + residual[n] if n in residual else t for n, t in delta.items()}
    part, sent = send({n: t for n, t in target.items() if n in travelling}, layout, lanes, draw)
    inexact = {name: tensor for name, tensor in target.items() if not lanes.of(name).exact}
    withheld = {n: t - sent[n] if n in sent else t for n, t in inexact.items()}
    return part, {n: t for n, t in residual.items() if n not in delta} | withheld
