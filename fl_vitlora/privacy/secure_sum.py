"""A secure sum: the server adds up what clients sent, and sees nothing of it but the sum.

Every two clients i < j agree on a seed that nobody else knows. To its own words client i adds those
that the seed gives, client j subtracts them, modulo 2³²:

    yᵢ = xᵢ + Σ_{j>i} stream(seedᵢⱼ) - Σ_{j<i} stream(seedᵢⱼ)        Σ yᵢ = Σ xᵢ

Each yᵢ by itself is as good as random; in the sum the masks cancel to the last bit.

1. *Greeting.* Client i draws an X25519 key pair (RFC 7748) from the system's randomness and sends
   the public key.
2. *Training.* The server sends all participants one `Roster`: the round, who takes part, with which
   share and which public key. seedᵢⱼ = HKDF(X25519(private keyᵢ, public keyⱼ), roster, i, j): it is
   for one round, and only where all were told the same do the masks cancel. Client i sends yᵢ, of
   as many bytes as xᵢ. The roster costs every participant about 47 bytes of downlink for each.
3. *Only if some dropped out.* The server asks the others for the seeds that they have in common
   with those, removes the masks, and has the sum of the others. Other rounds' seeds stay unknown.

This is the masking layer of Bonawitz et al. (2017), without its second mask, its shared secrets and
its signed keys. So the server must be honest, if curious: it passes public keys on as they came,
and says truthfully who dropped out. A client that was only late is unmasked if its yᵢ arrives after
all. A server and all clients but one can together compute what that one sent. Three must take part,
for of a sum of two each knows the other's part; when some drop out two may be left, who then do. A
sum hides no more than sums do: who took part, and with which share, is open.

Flower's SecAgg+ has the second mask, and cannot serve here: its workflow (`flwr.server.workflow`)
wants a `LegacyContext`, its mod (`flwr.client.mod`) replies that hold a `FitRes`, both from before
the Message API on which strategies run today. It takes four exchanges a round, and rounds each
number at random to 22 bits.

All functions are pure but `draw_secret`; what a client must remember they take and return.

K clients of a roster, W words of a vector.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS
2017, section 4.0.1; the name of a round's roster in the seeds is ours.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from numpy.typing import NDArray

from fl_vitlora.encryption.keys import derive_key
from fl_vitlora.encryption.keystream import KeyStream

Words = NDArray[np.uint32]
Seeds = Mapping[int, bytes]  # by the other client of the pair

FEWEST = 3  # clients of a roster: in a sum of two each knows the other's part
FEWEST_LEFT = 2  # of them when some dropped out: a sum of one is no sum
KEY_BYTES = 32
CHUNK = 2**16  # words of a mask at a time, so that they stay in the cache


@dataclass(frozen=True, kw_only=True)
class Member:
    """One participant of a sum.

    Attributes:
        client: Number of its shard.
        share: Its share in the mean, p in (0, 1).
        key: Its public key, 32 bytes.
    """

    client: int
    share: float
    key: bytes


@dataclass(frozen=True, kw_only=True)
class Roster:
    """What all participants of a sum are told alike.

    Attributes:
        round: From 1; larger in every sum of a run.
        members: In the order of their clients, at least three, with Σ share <= 1.
        limit: Range R of the fixed point numbers, which must be everybody's.

    Raises:
        ValueError: When no sum of these would keep anything secret.
    """

    round: int
    members: tuple[Member, ...]
    limit: float = 4.0

    def __post_init__(self) -> None:
        clients, keys = [m.client for m in self.members], {m.key for m in self.members}
        if len(clients) < FEWEST:
            raise ValueError(
                f"a secure sum of {len(clients)} would betray its parts; it takes {FEWEST} clients"
            )
        ordered = all(low < high for low, high in pairwise(clients))
        if not ordered or len(keys) < len(clients) or {len(key) for key in keys} != {KEY_BYTES}:
            raise ValueError("a roster lists every client once, in their order, with its own key")
        if not all(m.share > 0 for m in self.members) or self.share(self.clients) > 1 + 1e-9:
            raise ValueError("the shares of a roster are positive and not more than 1 in all")

    @cached_property
    def clients(self) -> frozenset[int]:
        """Names all participants."""
        return frozenset(self._by_client)

    @cached_property
    def digest(self) -> bytes:
        """Names the roster in 32 bytes; whoever was told anything else has another one."""
        parts = [struct.pack("<qd32s", m.client, m.share, m.key) for m in self.members]
        return hashlib.sha256(struct.pack("<qd", self.round, self.limit) + b"".join(parts)).digest()

    def of(self, client: int) -> Member:
        """Finds a participant.

        Raises:
            ValueError: When it is none.
        """
        if client not in self._by_client:
            raise ValueError(f"client {client} is not on the roster of round {self.round}")
        return self._by_client[client]

    def share(self, clients: frozenset[int]) -> float:
        """Adds up the shares of some participants."""
        return math.fsum(self.of(client).share for client in clients)

    @cached_property
    def _by_client(self) -> Mapping[int, Member]:
        return {member.client: member for member in self.members}


@dataclass(frozen=True, kw_only=True)
class Secret:
    """What a client keeps to itself from message to message.

    Attributes:
        client: Its number.
        private: Its private key, 32 bytes.
        roster: Of the last sum that it masked a vector for.
        dropped: Those of the roster whose seeds it has given away.
    """

    client: int
    private: bytes = field(repr=False)
    roster: Roster | None = None
    dropped: frozenset[int] = frozenset()

    @property
    def public(self) -> bytes:
        """Returns the public key, 32 bytes."""
        return X25519PrivateKey.from_private_bytes(self.private).public_key().public_bytes_raw()


def draw_secret(client: int) -> Secret:
    """Draws a new private key from the system's randomness; for each run, its own."""
    return Secret(client=client, private=X25519PrivateKey.generate().private_bytes_raw())


def pair_seed(secret: Secret, roster: Roster, other: int) -> bytes:
    """Derives the seed that two participants have in common; each finds the same one.

    Args:
        secret: Of one of them.
        roster: Of the sum.
        other: The number of the other one.

    Returns:
        32 bytes.

    Raises:
        ValueError: When the other one's public key is none.
    """
    key = X25519PublicKey.from_public_bytes(roster.of(other).key)
    agreed = X25519PrivateKey.from_private_bytes(secret.private).exchange(key)
    low, high = sorted((secret.client, other))
    return derive_key(agreed, f"secure sum/{roster.digest.hex()}/{low}/{high}")


def mask(client: int, seeds: Seeds, length: int) -> Words:
    """Adds up the masks between a client and others: Σ_{j>i} stream(seedⱼ) - Σ_{j<i} stream(seedⱼ).

    Args:
        client: i.
        seeds: By the number j of the other one.
        length: W.

    Returns:
        uint32 (W,), modulo 2³².
    """
    total = np.zeros(length, dtype=np.uint32)
    for other, seed in seeds.items():
        stream, apply = KeyStream(seed), np.add if other > client else np.subtract
        for begin in range(0, length, CHUNK):
            part = total[begin : begin + CHUNK]
            apply(part, stream.words(len(part)), out=part)
    return total


def contribute(secret: Secret, roster: Roster, words: Words) -> tuple[Words, Secret]:
    """At a client: masks its vector.

    Args:
        secret: What it remembers.
        roster: Of the sum.
        words: x, uint32 (W,), of as many words at every participant.

    Returns:
        y, uint32 (W,), and what it then remembers.

    Raises:
        ValueError: When the roster has another key for it, or is not of a later round than the one
            before: two vectors under one mask would betray their difference.
    """
    if roster.of(secret.client).key != secret.public:
        raise ValueError(f"the roster of round {roster.round} has another key for this client")
    if secret.roster is not None and roster.round <= secret.roster.round:
        raise ValueError(
            f"a vector for round {secret.roster.round} is masked already; a second one of round "
            f"{roster.round} might betray it"
        )
    others = roster.clients - {secret.client}
    seeds = {other: pair_seed(secret, roster, other) for other in sorted(others)}
    masked = words + mask(secret.client, seeds, len(words))
    return masked, replace(secret, roster=roster, dropped=frozenset())


def reveal(secret: Secret, server_round: int, dropped: frozenset[int]) -> tuple[Seeds, Secret]:
    """At a client: gives away the seeds in common with those who dropped out of the last sum.

    Args:
        secret: What it remembers.
        server_round: Of the sum.
        dropped: All who dropped out of it so far.

    Returns:
        The seeds by client, and what it then remembers.

    Raises:
        ValueError: When it masked nothing in that round, when it or all others are said to have
            dropped out, or one that did is said to have come back.
    """
    roster = secret.roster
    if roster is None or roster.round != server_round:
        raise ValueError(f"nothing was masked for round {server_round}")
    left = roster.clients - dropped
    if not dropped <= roster.clients or secret.client not in left or len(left) < FEWEST_LEFT:
        raise ValueError(
            f"clients {sorted(dropped)} cannot have dropped out of {sorted(roster.clients)}: "
            f"at least {FEWEST_LEFT} must be left, client {secret.client} one of them"
        )
    if not secret.dropped <= dropped:
        raise ValueError("a client that dropped out of a sum cannot be in it again")
    seeds = {other: pair_seed(secret, roster, other) for other in sorted(dropped)}
    return seeds, replace(secret, dropped=dropped)


# Asks those left for their seeds with those dropped; returns the seeds of each that answered.
Ask = Callable[[frozenset[int], frozenset[int]], Mapping[int, Seeds]]


def add_up(roster: Roster, masked: dict[int, Words], ask: Ask) -> tuple[Words, frozenset[int]]:
    """At the server: adds up masked vectors, with the help of those left if some dropped out.

    A client that does not answer when it is asked for seeds has dropped out as well. The seeds with
    a client that dropped out open its vector, so that vector is deleted before they are asked for.

    Args:
        roster: Of the sum.
        masked: y of each participant whose vector arrived, uint32 (W,); it is emptied, and the
            caller keeps no other reference to the vectors.
        ask: The second exchange.

    Returns:
        Σ x mod 2³² of those left, uint32 (W,), and who they are.

    Raises:
        ValueError: When fewer than two are left, or vectors differ in length.
    """
    if len({len(vector) for vector in masked.values()}) > 1:
        masked.clear()
        raise ValueError("the vectors of a sum differ in length")
    left, seeds = frozenset(masked), dict[int, Seeds]()
    while dropped := roster.clients - left:
        for client in masked.keys() & dropped:
            del masked[client]
        if len(left) < FEWEST_LEFT:
            masked.clear()
            raise ValueError(
                f"clients {sorted(dropped)} dropped out; {len(left)} left are too few for a "
                "secure sum"
            )
        seeds = dict(ask(left, dropped))
        helpful = frozenset(c for c in left if seeds.get(c, {}).keys() >= dropped)
        if helpful == left:
            break
        left = helpful
    total = np.zeros(len(next(iter(masked.values()))), dtype=np.uint32)
    for client in sorted(left):
        known = {other: seeds[client][other] for other in roster.clients - left}
        total += masked.pop(client) - mask(client, known, len(total))
    return total, left
