"""Lanes: a lane is the codec and the interval with which a group of tensors is sent.

A group with ``every(n)`` is sent in every n-th round and in the last round. In the rounds between,
the changes of the group are not sent, and each client continues to train its own copy. Uplink and
downlink have their own lanes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fl_vitlora.communication.codecs import Codec, parse
from fl_vitlora.communication.groups import GROUPS, group_of
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.groups import CONTROL

EVERY = re.compile(r"\s*every\s*\(\s*(?P<n>\d{1,5})\s*\)\s*(\+(?P<codec>.*))?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The codec and the interval with which a group of tensors is sent, uplink or downlink.

    Attributes:
        codec: The codec that writes the tensors of the group as bytes.
        every: The interval n: the group is sent in every n-th round, and in the last round.
    """

    codec: Codec
    every: int = 1

    @property
    def exact(self) -> bool:
        """Returns True if all changes of the group are sent in every round, without loss."""
        return self.codec.lossless and self.every == 1


@dataclass(frozen=True)
class Lanes:
    """The codec and the interval of every group of tensors, for uplink or downlink.

    Attributes:
        by_group: The lane (codec and interval) of each group of `groups.GROUPS`.
    """

    by_group: Mapping[str, Lane]

    @property
    def exact(self) -> bool:
        """Returns True if all changes of all groups are sent in every round, without loss."""
        return all(lane.exact for lane in self.by_group.values())

    def of(self, name: str) -> Lane:
        """Returns the lane (codec and interval) of the group to which a tensor belongs."""
        return self.by_group[group_of(name)]

    def open(self, names: Iterable[str], server_round: int, rounds: int) -> frozenset[str]:
        """Returns the names of the tensors that are sent in a round.

        Args:
            names: The names of all tensors that could be sent.
            server_round: The number of the round, from 1.
            rounds: The number of rounds of the run.
        """
        last = server_round == rounds
        return frozenset(n for n in names if last or server_round % self.of(n).every == 0)


def parse_lane(spec: str) -> Lane:
    """Reads the specification of a codec, with or without an interval before the codec.

    Raises:
        UserError: If the text is neither a codec nor an interval with a codec.

    Example:
        >>> parse_lane("every(5)+int4").every, parse_lane("int4").every
        (5, 1)
    """
    if "every" not in spec:
        return Lane(codec=parse(spec))
    match = EVERY.fullmatch(spec)
    if match is None or not int(match["n"]):
        raise UserError(
            f"codec {spec!r}: expected an interval from 1, then the codec, for example "
            "every(5)+int4"
        )
    codec = "float32" if match["codec"] is None else match["codec"]
    return Lane(codec=parse(codec), every=int(match["n"]))


def read_lanes(specs: Mapping[str, str | None], default: str) -> Lanes:
    """Reads from the settings how each group of tensors is sent.

    Args:
        specs: For each group, a text that says how it is sent, for example ``every(5)+int4``. If a
            group is missing or None, the default is used.
        default: The text (codec, with or without an interval) for groups without their own.

    Example:
        >>> read_lanes({"head": "every(2)+float32"}, "float32").of("head.weight").every
        2
    """
    own = {group: specs.get(group) for group in GROUPS} | {CONTROL: "float32"}  # always exact
    return Lanes({g: parse_lane(default if spec is None else spec) for g, spec in own.items()})


EXACT = read_lanes({}, "float32")
