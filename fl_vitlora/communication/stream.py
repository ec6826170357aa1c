"""A stream: the server sends a state to its clients as a series of compressed changes.

    step t   encodes target_t - held_(t-1)      held_t = held_(t-1) + decoded step t

All clients that followed all steps hold the same values, bit by bit, so one coded step serves all
of them. What a step withholds is part of the next difference, so error feedback comes by itself. A
client that missed steps is sent those steps, or the full state if that is smaller.

Source: Tang et al., arXiv 1905.05957, for compression in both directions; here the server
encodes differences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from fl_vitlora.communication.compression import code, decode, send
from fl_vitlora.communication.lanes import EXACT, Lanes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Parcel, Part, read, write
from fl_vitlora.state import State, add, subtract
from fl_vitlora.storage.trees import Tree

WHOLE = -1  # the base version of a full state, which builds on zeros


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A state that the server sends to many clients as a series of changes.

    Attributes:
        initial: The values that every client has before the first change.
        held: The values of every client that followed all changes.
        target: The values that the server last wanted the clients to have.
        steps: The last changes, as long as together they are smaller than the full state.
        version: The number of changes so far.
    """

    initial: State
    held: State
    target: State
    steps: tuple[Part, ...] = ()
    version: int = 0

    @classmethod
    def of(cls, initial: State) -> Stream:
        """Returns a new stream, without changes."""
        return cls(initial=initial, held=initial, target=initial)

    @property
    def layout(self) -> Layout:
        """Returns the layout of all tensors."""
        return Layout.of(self.initial)

    def advance(
        self, target: State, lanes: Lanes, travelling: frozenset[str], draw: np.random.Generator
    ) -> Stream:
        """Adds a change towards new values; tensors that did not change are not sent again.

        Args:
            target: The new values of some of the tensors.
            lanes: The codec of each group.
            travelling: The names of the tensors that are sent in this round.
            draw: The random generator for codecs that draw.

        Returns:
            The stream with the change added.
        """
        moved = {
            name: tensor
            for name, tensor in target.items()
            if name in travelling and not torch.equal(tensor, self.target[name])
        }
        if not moved:
            return self
        order = {name: moved[name] for name in self.initial if name in moved}
        change = subtract(order, {name: self.held[name] for name in order})
        part, arriving = send(change, self.layout, lanes, draw)
        steps = (*self.steps, part)
        while sum(step.size for step in steps) > 4 * self.layout.scalars:
            steps = steps[1:]
        return Stream(
            initial=self.initial,
            held=moved_by(self.held, arriving),
            target=self.target | moved,
            steps=steps,
            version=self.version + 1,
        )

    def snapshot(self) -> Tree:
        """Returns the state of the stream for a checkpoint, without its initial values."""
        steps = [write(Parcel(parts=(("", step),))) for step in self.steps]
        return {"held": self.held, "target": self.target, "steps": steps, "version": self.version}

    def restored(self, tree: Tree) -> Stream:
        """Returns this new stream with the state that `snapshot` returned."""
        steps = tuple(read(step).parts[0][1] for step in tree["steps"])
        return replace(self, **{**tree, "steps": steps})

    def since(self, version: int) -> tuple[int, tuple[Part, ...]]:
        """Returns the steps that a client at a version has missed, or the full state if smaller.

        Args:
            version: The number of changes that the client has followed; 0 for none.

        Returns:
            The version that the parts build on, and the parts. The full state has the base version
            `WHOLE`; it is also sent if the steps are no longer kept.
        """
        missed = self.version - version
        if missed <= len(self.steps):
            return version, self.steps[len(self.steps) - missed :]
        draw = np.random.default_rng(0)  # an exact codec draws nothing
        return WHOLE, (code(self.held, self.layout, EXACT, draw),)


def follow(held: State, parts: Iterable[Part], layout: Layout) -> State:
    """Returns a client's values after the changes that the server sent.

    Args:
        held: The values of the version that the parts build on; zeros for `WHOLE`.
        parts: The parts that `Stream.since` returned.
        layout: The layout of all tensors.
    """
    for part in parts:
        held = moved_by(held, decode(part, layout))
    return held


def moved_by(held: State, change: State) -> State:
    """Adds a change of some tensors; both sides call this, so that they agree bit by bit."""
    return held | add({name: held[name] for name in change}, change)
