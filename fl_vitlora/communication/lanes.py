"""Lanes: how each group of tensors travels in one direction, by which codec and how often.

A group may rest on the wire: under ``every(n)`` it travels in every n-th round and in the last one.
Until then its changes are withheld, and a client trains on from where it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fl_vitlora.communication.codecs import Codec, parse
from fl_vitlora.communication.groups import GROUPS, group_of
from fl_vitlora.errors import UserError

EVERY = re.compile(r"\s*every\s*\(\s*(?P<n>\d{1,5})\s*\)\s*(\+(?P<codec>.*))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Lane:
    """How one group travels in one direction.

    Attributes:
        codec: Of its tensors.
        every: It travels in every so manieth round, and in the last.
    """

    codec: Codec
    every: int = 1

    @property
    def exact(self) -> bool:
        """Tells whether nothing is ever withheld."""
        return self.codec.lossless and self.every == 1


@dataclass(frozen=True)
class Lanes:
    """How each group travels in one direction.

    Attributes:
        by_group: Of all `groups.GROUPS`.
    """

    by_group: Mapping[str, Lane]

    @property
    def exact(self) -> bool:
        """Tells whether nothing is ever withheld of any group."""
        return all(lane.exact for lane in self.by_group.values())

    def of(self, name: str) -> Lane:
        """Finds the lane of a tensor."""
        return self.by_group[group_of(name)]

    def open(self, names: Iterable[str], server_round: int, rounds: int) -> frozenset[str]:
        """Names the tensors that travel in a round.

        Args:
            names: Of the tensors in question.
            server_round: From 1.
            rounds: How many there will be.
        """
        last = server_round == rounds
        return frozenset(n for n in names if last or server_round % self.of(n).every == 0)


def parse_lane(spec: str) -> Lane:
    """Reads a codec with an interval before it, or without.

    Raises:
        UserError: When it is neither.

    Example:
        >>> parse_lane("every(5)+int4").every, parse_lane("int4").every
        (5, 1)
    """
    if "every" not in spec:
        return Lane(codec=parse(spec))
    match = EVERY.fullmatch(spec)
    if match is None or not int(match["n"]):
        raise UserError(f"codec {spec!r}: expected for example every(5)+int4, the interval first")
    codec = "float32" if match["codec"] is None else match["codec"]
    return Lane(codec=parse(codec), every=int(match["n"]))


def read_lanes(specs: Mapping[str, str | None], default: str) -> Lanes:
    """Reads how all groups travel.

    Args:
        specs: By group; what is missing or None takes the default.
        default: Of all others.

    Example:
        >>> read_lanes({"head": "every(2)+float32"}, "float32").of("head.weight").every
        2
    """
    own = {group: specs.get(group) for group in GROUPS}
    return Lanes({g: parse_lane(default if spec is None else spec) for g, spec in own.items()})


EXACT = read_lanes({}, "float32")
