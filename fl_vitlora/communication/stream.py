"""A stream: a state that the server makes known to its clients change by change.

    step t   codes target_t - held_(t-1)      held_t = held_(t-1) + what that decodes to

All who followed all steps hold the same, bit by bit, so that one coded step serves everybody; what
a step withholds is in the next one's difference, which is error feedback by itself. Who missed some
steps is sent these, and the whole where they are longer.

Source: Tang et al., arXiv 1905.05957, for compression both ways; here the server codes differences.
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

WHOLE = -1  # the version on which values stand that are sent as they are


@dataclass(frozen=True, kw_only=True)
class Stream:
    """A state that one side makes known to many, change by change; all who follow have the same.

    Attributes:
        initial: What everybody has before the first change.
        held: What everybody has who followed all changes.
        target: What they were last to have.
        steps: The last changes, as long as they are shorter than the whole.
        version: How many changes there were.
    """

    initial: State
    held: State
    target: State
    steps: tuple[Part, ...] = ()
    version: int = 0

    @classmethod
    def of(cls, initial: State) -> Stream:
        """Begins one."""
        return cls(initial=initial, held=initial, target=initial)

    @property
    def layout(self) -> Layout:
        """Of all tensors."""
        return Layout.of(self.initial)

    def advance(
        self, target: State, lanes: Lanes, travelling: frozenset[str], draw: np.random.Generator
    ) -> Stream:
        """Adds a change towards new values; what has not moved is not sent again.

        Args:
            target: Some of the tensors.
            lanes: With the codec of each group.
            travelling: Which tensors travel in this round.
            draw: Of what codecs leave to chance.

        Returns:
            The stream after it.
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
        """Returns what a stream of the same beginning goes on from."""
        steps = [write(Parcel(parts=(("", step),))) for step in self.steps]
        return {"held": self.held, "target": self.target, "steps": steps, "version": self.version}

    def restored(self, tree: Tree) -> Stream:
        """Makes of a stream's beginning that of which `snapshot` was taken."""
        steps = tuple(read(step).parts[0][1] for step in tree["steps"])
        return replace(self, **{**tree, "steps": steps})

    def since(self, version: int) -> tuple[int, tuple[Part, ...]]:
        """Tells what somebody lacks.

        Args:
            version: How many changes it has followed; 0 for none.

        Returns:
            On which version that stands, and the changes since; `WHOLE` and all values as they
            are, where those are shorter or the changes are kept no longer.
        """
        missed = self.version - version
        if missed <= len(self.steps):
            return version, self.steps[len(self.steps) - missed :]
        draw = np.random.default_rng(0)  # an exact codec draws nothing
        return WHOLE, (code(self.held, self.layout, EXACT, draw),)


def follow(held: State, parts: Iterable[Part], layout: Layout) -> State:
    """At the other side: makes the changes that were sent.

    Args:
        held: Values of the version that the parts stand on; zeros for `WHOLE`.
        parts: As `Stream.since` told them.
        layout: Of all tensors.
    """
    for part in parts:
        held = moved_by(held, decode(part, layout))
    return held


def moved_by(held: State, change: State) -> State:
    """Adds a change of some tensors; both sides do just this, so that they agree bit by bit."""
    return held | add({name: held[name] for name in change}, change)
