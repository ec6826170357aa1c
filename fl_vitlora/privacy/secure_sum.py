"""Secure aggregation: the server learns the sum of the clients' vectors, but no single vector.

Every two clients i < j agree on a seed that nobody else knows. A stream of pseudorandom 32-bit
words is computed from the seed. Client i adds the stream of words to its vector xᵢ, and client j
subtracts the same stream from its vector xⱼ, modulo 2³²:

    yᵢ = xᵢ + Σ_{j>i} stream(seedᵢⱼ) - Σ_{j<i} stream(seedᵢⱼ)        Σ yᵢ = Σ xᵢ

A single yᵢ looks random; in the sum of all yᵢ the streams cancel exactly.

1. *Greeting*, the first message of a client. Client i draws an X25519 key pair (RFC 7748) from the
   system's randomness, and sends the public key.
2. *Training.* The server sends the same list, the `Roster`, to all participants: the round, and
   each participant's number, share (weight in the mean) and public key. The seed of a pair is
   seedᵢⱼ = HKDF(X25519(private keyᵢ, public keyⱼ), roster, i, j). So a seed is used for one round
   only, and the streams cancel only if all participants got the same roster and the same
   instruction (`agreement.told`). Client i sends yᵢ, which has as many bytes as xᵢ. The roster
   takes about 47 bytes for each client that it lists, in every message.
3. *Only if clients drop out.* The server asks the remaining clients for the seeds that they share
   with the clients that dropped out. With the seeds of dropped clients, the server removes the
   streams that do not cancel, and gets the sum of the remaining clients. The seeds of other rounds
   stay unknown.

This protocol is the masking of Bonawitz et al. (2017), without the second mask, the secret sharing
and the signed keys of the paper. So the server may be curious but must be honest: it must forward
public keys unchanged, and must report truthfully which clients dropped out. If a client counts as
dropped but its yᵢ arrives late, the server can compute xᵢ. If the server and all clients except one
work together, they can compute the vector of this one client. At least three clients must take
part, because in a sum of two vectors each client can compute the vector of the other client. If so
many clients drop out that two remain, each of the two can compute the vector of the other. A sum
does not hide which clients took part, or with which share.

Flower's SecAgg+ has the second mask of the paper, but requires an interface that is older than the
Message API. It takes four exchanges of messages in a round, and rounds numbers to 22 bits.

All functions except `draw_secret` are pure. They take a client's state and return its new state.
K is the number of clients on a roster, W the number of words in a vector.

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", CCS
2017, section 4.0.1. In this project, the seeds also depend on the digest of the round's roster.
Seeds that depend on the instruction are the remedy of Pasquini et al., CCS 2022 (arXiv 2111.07380).
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
Seeds = Mapping[int, bytes]  # the seed of each pair, by the number of the other client

FEWEST = 3  # clients of a roster; in a sum of two vectors each client can compute the other vector
FEWEST_LEFT = 2  # clients that must remain; a sum of one vector is this vector
KEY_BYTES = 32
CHUNK = 2**16  # words of a mask that are computed together, so that they stay in the cache


@dataclass(frozen=True, kw_only=True)
class Member:
    """One participant of a secure sum.

    Attributes:
        client: The number of the client.
        share: The weight p of the client in the mean, in (0, 1).
        key: The public key of the client, 32 bytes.
    """

    client: int
    share: float
    key: bytes


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The list of participants of a secure sum; the server sends the same list to all of them.

    Attributes:
        round: The number of the round, from 1, which grows with every sum of a run.
        members: The participants, at least three, sorted by client number, with Σ share <= 1.
        limit: The range R of the fixed-point numbers, from -R to R, equal for all participants.
        told: The digest of the round's instruction, which each client computes from its own
            instruction. The digest is never sent: `told` is empty in the server's roster.

    Raises:
        ValueError: If there are too few participants, or a number, share or key is invalid.
    """

    round: int
    members: tuple[Member, ...]
    limit: float = 4.0
    told: bytes = b""

    def __post_init__(self) -> None:
        clients, keys = [m.client for m in self.members], {m.key for m in self.members}
        if len(clients) < FEWEST:
            raise ValueError(
                f"a secure sum of {len(clients)} clients would reveal single vectors; expected at "
                f"least {FEWEST} clients"
            )
        ordered = all(low < high for low, high in pairwise(clients))
        if not ordered or len(keys) < len(clients) or {len(key) for key in keys} != {KEY_BYTES}:
            raise ValueError(
                "a roster (the participants of a secure sum) must list every client once, sorted "
                "by number, each with its own public key of 32 bytes"
            )
        if not all(m.share > 0 for m in self.members) or self.share(self.clients) > 1 + 1e-9:
            raise ValueError(
                "the shares (weights of the clients in the mean) of a roster must be positive and "
                "add up to at most 1"
            )

    @cached_property
    def clients(self) -> frozenset[int]:
        """Returns the numbers of all participants."""
        return frozenset(self._by_client)

    @cached_property
    def digest(self) -> bytes:
        """Returns the SHA-256 digest of the roster, 32 bytes; two rosters never share a digest."""
        parts = [struct.pack("<qd32s", m.client, m.share, m.key) for m in self.members]
        head = struct.pack("<qd", self.round, self.limit)
        return hashlib.sha256(head + b"".join(parts) + self.told).digest()

    def of(self, client: int) -> Member:
        """Returns the number, share and public key of a participant.

        Raises:
            ValueError: If the client is not on the roster.
        """
        if client not in self._by_client:
            raise ValueError(
                f"client {client} is not on the roster of round {self.round}, the list of the "
                "participants of its secure sum"
            )
        return self._by_client[client]

    def share(self, clients: frozenset[int]) -> float:
        """Returns the sum of the shares (weights in the mean) of the given participants."""
        return math.fsum(self.of(client).share for client in clients)

    @cached_property
    def _by_client(self) -> Mapping[int, Member]:
        return {member.client: member for member in self.members}


@dataclass(frozen=True, kw_only=True)
class Secret:
    """The secret state that a client stores between messages.

    Attributes:
        client: The number of the client.
        private: The private key, 32 bytes.
        roster: The roster of the last sum for which the client masked a vector; None before the
            first sum.
        dropped: The clients on this roster that dropped out, and whose seeds this client has
            revealed to the server.
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
    """Draws a new private key from the system's randomness; every run needs a new private key."""
    return Secret(client=client, private=X25519PrivateKey.generate().private_bytes_raw())


def pair_seed(secret: Secret, roster: Roster, other: int) -> bytes:
    """Derives the common seed of two participants; both participants derive the same seed.

    Args:
        secret: The secret state of one participant.
        roster: The roster of the sum: the participants with their shares and public keys.
        other: The number of the other participant.

    Returns:
        The seed, 32 bytes.

    Raises:
        ValueError: If the other participant's public key is invalid.
    """
    key = X25519PublicKey.from_public_bytes(roster.of(other).key)
    agreed = X25519PrivateKey.from_private_bytes(secret.private).exchange(key)
    low, high = sorted((secret.client, other))
    return derive_key(agreed, f"secure sum/{roster.digest.hex()}/{low}/{high}")


def mask(client: int, seeds: Seeds, length: int) -> Words:
    """Returns the mask of client i: Σ_{j>i} stream(seedⱼ) - Σ_{j<i} stream(seedⱼ), modulo 2³².

    The stream of a seed is a sequence of pseudorandom 32-bit words.

    Args:
        client: The number i of the client.
        seeds: The seeds by the number j of the other client.
        length: The number W of 32-bit integers in the mask.

    Returns:
        The mask, uint32 (W,).
    """
    total = np.zeros(length, dtype=np.uint32)
    for other, seed in seeds.items():
        stream, apply = KeyStream(seed), np.add if other > client else np.subtract
        for begin in range(0, length, CHUNK):
            part = total[begin : begin + CHUNK]
            apply(part, stream.words(len(part)), out=part)
    return total


def contribute(secret: Secret, roster: Roster, words: Words) -> tuple[Words, Secret]:
    """Masks the vector of a client; the client calls this function.

    Args:
        secret: The secret state of the client: its private key, and the last sum that it took part
            in.
        roster: The roster of the sum: the participants with their shares and public keys.
        words: The vector x, uint32 (W,), with the same W at every participant.

    Returns:
        The masked vector y, uint32 (W,); and the client's new secret state.

    Raises:
        ValueError: If the roster lists a public key for this client that is not its own, or if the
            round of the roster is not later than that of the last sum. Two vectors under the same
            mask would reveal their difference.
    """
    if roster.of(secret.client).key != secret.public:
        raise ValueError(
            f"the roster of round {roster.round} must list this client's own public key, but lists "
            "another key"
        )
    if secret.roster is not None and roster.round <= secret.roster.round:
        raise ValueError(
            f"this client has already masked a vector for round {secret.roster.round}; a second "
            f"vector, for round {roster.round}, might reveal the first vector; expected a later "
            "round"
        )
    others = roster.clients - {secret.client}
    seeds = {other: pair_seed(secret, roster, other) for other in sorted(others)}
    masked = words + mask(secret.client, seeds, len(words))
    return masked, replace(secret, roster=roster, dropped=frozenset())


def reveal(secret: Secret, server_round: int, dropped: frozenset[int]) -> tuple[Seeds, Secret]:
    """Reveals the seeds that a client shares with clients that dropped out of the last sum.

    Args:
        secret: The secret state of the client: its private key, and the last sum that it took part
            in.
        server_round: The number of the round of the sum.
        dropped: All clients that have dropped out of the sum so far.

    Returns:
        A pair. First, a dictionary: for each dropped client, the seed that both clients share.
        Second, this client's new secret state.

    Raises:
        ValueError: If this client masked no vector in that round; if this client is in `dropped` or
            too few clients remain; or if `dropped` lacks a client that an earlier request
            contained.
    """
    roster = secret.roster
    if roster is None or roster.round != server_round:
        raise ValueError(
            f"this client has no seeds to reveal: it masked no vector for round {server_round}"
        )
    left = roster.clients - dropped
    if not dropped <= roster.clients or secret.client not in left or len(left) < FEWEST_LEFT:
        raise ValueError(
            f"clients {sorted(dropped)} cannot have dropped out of {sorted(roster.clients)}: "
            f"at least {FEWEST_LEFT} clients must remain, including client {secret.client}"
        )
    if not secret.dropped <= dropped:
        raise ValueError(
            "a request for seeds must name all clients that an earlier request named; a client "
            "that dropped out of a sum cannot come back"
        )
    seeds = {other: pair_seed(secret, roster, other) for other in sorted(dropped)}
    return seeds, replace(secret, dropped=dropped)


# Asks the remaining clients (first argument) for the seeds that they share with the dropped clients
# (second argument), and returns the seeds of each client that answered.
Ask = Callable[[frozenset[int], frozenset[int]], Mapping[int, Seeds]]


def add_up(roster: Roster, masked: dict[int, Words], ask: Ask) -> tuple[Words, frozenset[int]]:
    """Adds up masked vectors at the server; if clients dropped out, asks the rest for seeds.

    A client that does not answer the request for seeds counts as dropped, too. With the seeds that
    other clients share with a dropped client, the server could unmask the vector of this client. So
    the server deletes the vector of a dropped client before it asks for the seeds.

    Args:
        roster: The roster of the sum: the participants with their shares and public keys.
        masked: The masked vector y of each client whose vector arrived, uint32 (W,). This function
            removes all entries of the mapping; the caller must have no other reference to the
            vectors.
        ask: A function that asks the remaining clients for seeds.

    Returns:
        The sum Σ x mod 2³² of the remaining clients, uint32 (W,); and the numbers of these clients.

    Raises:
        ValueError: If fewer than two clients remain, or the vectors differ in length.
    """
    if len({len(vector) for vector in masked.values()}) > 1:
        masked.clear()
        raise ValueError(
            "all vectors of a secure sum must have the same length, but their lengths differ"
        )
    left, seeds = frozenset(masked), dict[int, Seeds]()
    while dropped := roster.clients - left:
        for client in masked.keys() & dropped:
            del masked[client]
        if len(left) < FEWEST_LEFT:
            masked.clear()
            raise ValueError(
                f"clients {sorted(dropped)} dropped out and {len(left)} remained; a secure sum "
                "needs at least two remaining clients"
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
