"""A stream: tensors that the server sends to its clients as a series of compressed changes.

    step t   encodes target_t - held_(t-1)      held_t = held_(t-1) + decoded step t

Here, target_t is the server's state after t changes, and held_t is the state at the clients.

All clients that received all steps have the same tensors, bit for bit, so the server encodes a step
once for all of them. The next difference contains the coding error of the step before, so the
stream needs no separate error feedback. If a client missed steps, the server sends it these
steps, or the full state if the full state is smaller.

Source: Tang et al., arXiv 1905.05957, for compression in both directions; in contrast to the paper,
the server of this project encodes the difference between its own tensors and the clients' tensors.
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

WHOLE = -2  # the base version of a full state; older programs use -1, and send all tensors


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tensors that the server sends to many clients as a series of compressed changes.

    Attributes:
        initial: The tensors of every client before the first change.
        held: The tensors of a client that received all changes.
        target: The exact tensors of the server, which `held` approximates.
        steps: The newest changes, coded. Together they have at most the bytes of all tensors in
            float32.
        version: The number of changes so far.
    """

    initial: State
    held: State
    target: State
    steps: tuple[Part, ...] = ()
    version: int = 0

    @classmethod
    def of(cls, initial: State) -> Stream:
        """Returns a new stream that contains no change yet."""
        return cls(initial=initial, held=initial, target=initial)

    @property
    def layout(self) -> Layout:
        """Returns the names and shapes of all tensors."""
        return Layout.of(self.initial)

    def advance(
        self, target: State, lanes: Lanes, travelling: frozenset[str], draw: np.random.Generator
    ) -> Stream:
        """Adds a step: the compressed difference between new tensors and the clients' tensors.

        Tensors that did not change are not sent again.

        Args:
            target: The new values of some or all tensors of the stream, by name.
            lanes: For each group of tensors, its codec and how many rounds lie between two
                sendings.
            travelling: The names of the tensors that are sent in this round.
            draw: The random generator for codecs with stochastic rounding.

        Returns:
            A copy of this stream to which the change was added; this stream if no tensor changed.
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
        """Returns the state of the stream for a checkpoint, without the initial tensors."""
        steps = [write(Parcel(parts=(("", step),))) for step in self.steps]
        return {"held": self.held, "target": self.target, "steps": steps, "version": self.version}

    def restored(self, tree: Tree) -> Stream:
        """Returns a copy of this new stream with the state that `snapshot` returned."""
        steps = tuple(read(step).parts[0][1] for step in tree["steps"])
        return replace(self, **{**tree, "steps": steps})

    def since(self, version: int) -> tuple[int, tuple[Part, ...]]:
        """Returns the steps that a client missed, or the full state if not all of them are kept.

        Args:
            version: The number of changes that the client has received, from 0.

        Returns:
            First, the version of the client's tensors to which the parts are added. This version is
            `WHOLE` if the parts are the full state, because some missed steps are no longer kept. A
            full state lacks the tensors that never changed.
            Second, the parts (coded tensors) that `follow` reads.
        """
        missed = self.version - version
        if missed <= len(self.steps):
            return version, self.steps[len(self.steps) - missed :]
        draw = np.random.default_rng(0)  # not used, because an exact codec draws nothing
        moved = {n: t for n, t in self.held.items() if not torch.equal(t, self.initial[n])}
        return WHOLE, (code(moved, self.layout, EXACT, draw),)


def follow(held: State, base: int, parts: Iterable[Part], layout: Layout) -> State:
    """Returns a client's tensors after the changes that the server sent.

    Args:
        held: The client's tensors before the changes; the tensors before the first change of the
            stream if the parts are the full state.
        base: The version of the client's tensors, or `WHOLE`, as `Stream.since` returned it.
        parts: The coded tensors that `Stream.since` returned.
        layout: The names and shapes of all tensors of the stream.
    """
    for part in parts:
        found = decode(part, layout)
        held = held | found if base < 0 else moved_by(held, found)
    return held


def moved_by(held: State, change: State) -> State:
    """Adds a change to some tensors.

    The server and all clients add with this function, so they all get the same bits.
    """
    return held | add({name: held[name] for name in change}, change)
