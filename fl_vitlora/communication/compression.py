"""Compression of tensors, group by group, with error feedback.

    target   = delta + residual          the change that the other side should see
    sent     = decode(encode(target))    the change that it sees
    residual = target - sent             the rest, which is added to the next round's delta

With error feedback a codec may be lossy and biased: the residual of one round is sent in a later
round. A group is a set of tensors that share a codec, and the codec gets them as one vector. The
layout is the list of names and shapes of all tensors. A tensor of the layout that is missing in a
message's coded tensors (`Part`) has not changed.

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
    """Encodes tensors, each group of tensors with its own codec.

    Args:
        state: Some of the layout's tensors, float32.
        layout: The names and shapes of all tensors that the receiver may expect.
        lanes: The codec and the interval of each group of tensors.
        draw: The random generator for codecs with stochastic rounding.

    Raises:
        ValueError: If a tensor holds NaN or infinity, or if the layout does not have the tensor.
    """
    return send(state, layout, lanes, draw)[0]


def send(
    state: State, layout: Layout, lanes: Lanes, draw: np.random.Generator
) -> tuple[Part, State]:
    """Encodes tensors as `code` does, and also returns the tensors that `decode` will return."""
    here = layout.only(frozenset(state))
    if Layout.of(state) != here:
        raise ValueError(
            "the tensors to be sent must have names and shapes of the layout, in its order"
        )
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
    """Decodes tensors that `code` encoded, with the codecs that are named in `part`.

    Args:
        part: The coded tensors as they were received.
        layout: The names and shapes of all tensors that the part may hold.

    Returns:
        The tensors of the part, in the order of the layout, float32.

    Raises:
        ValueError: If the part was made for other tensors, or if a codec cannot read its bytes.
    """
    if part.digest != layout.digest:
        raise ValueError(
            f"message refused: its tensors are not the {len(layout.shapes)} expected tensors; do "
            "client and server build the same model?"
        )
    here = layout.only(layout.marked(part.marks)) if part.marks else layout
    groups = _by_group(here)
    if [section.group for section in part.sections] != list(groups):
        raise ValueError(
            "message refused: its sections belong to other groups of tensors than its table "
            "declares"
        )
    found: State = {}
    for section, expected in zip(part.sections, groups.values(), strict=True):
        values = _decode(section, expected)
        found |= expected.shaped(values)
    return {name: found[name] for name in here.names}


def is_exact(part: Part) -> bool:
    """Returns True if lossless codecs wrote all coded tensors of a part.

    Raises:
        ValueError: If the part names an unknown codec.
    """
    return all(parse(section.codec).lossless for section in part.sections)


def _decode(section: Section, layout: Layout) -> Floats:
    """Decodes the body of a section with the codec that the section names."""
    try:
        codec = parse(section.codec)
        return codec.decode(section.body, tuple(shape for _, shape in layout.shapes))
    except ValueError as error:
        raise ValueError(f"message refused: group {section.group} of tensors: {error}") from None


@functools.lru_cache(maxsize=32)
def _by_group(layout: Layout) -> dict[str, Layout]:
    """Splits a layout into one layout for each group, in the order of `GROUPS`."""
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
    """Encodes a change of tensors plus the part of earlier changes that was not sent.

    Args:
        delta: The change of all tensors of the layout.
        residual: The part of earlier changes that was not sent, by name of the tensor; it may
            contain names that are not in the layout.
        layout: The names and shapes of the tensors in `delta`.
        lanes: The codec and the interval of each group of tensors.
        travelling: The names of the tensors that are sent in this round; `Lanes.open` returns them.
        draw: The random generator for codecs with stochastic rounding.

    Returns:
        The coded tensors that are sent, and the new residual. A tensor whose codec is lossless and
        whose group is sent in every round has no residual.
    """
    target = {n: t + residual[n] if n in residual else t for n, t in delta.items()}
    part, sent = send({n: t for n, t in target.items() if n in travelling}, layout, lanes, draw)
    inexact = {name: tensor for name, tensor in target.items() if not lanes.of(name).exact}
    withheld = {n: t - sent[n] if n in sent else t for n, t in inexact.items()}
    return part, {n: t for n, t in residual.items() if n not in delta} | withheld
