"""Agreement on a roster: a client masks its vector only if all participants have signed the roster.

The roster of a secure sum has a public key for each participant. A server that puts keys of its own
into the roster knows all seeds, and so all masks (`attacks.false_keys`). With pinned identity keys
(`encryption.identities`) this attack fails:

1. The server sends the roster of the round to all participants, and each signs it.
2. The server sends the roster with all signatures, together with the instruction to train. A client
   masks its vector only if each participant has signed exactly this roster.

A signature covers the round, and the number, share and public key of every participant. Every
client draws its key pair anew for each run, so a roster of another run lacks the client's own key.
So no signature can be used for another round, another run, another client or another list.

Signed rosters do not prevent two things. The server may leave clients out, as long as `least`
clients participate. The server may also claim that a client dropped out, although the client sent
its vector; `privacy.reveal_seeds=false` prevents this claim from revealing the vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from torch import Tensor

from fl_vitlora.encryption.identities import SETTING, SIGNATURE_BYTES, Identities, Pins
from fl_vitlora.privacy.secure_sum import FEWEST, Roster, Secret
from fl_vitlora.state import State

PURPOSE = b"fl_vitlora/secure sum/roster/1\0"  # no signature is valid for another purpose

ROUNDING = 1e-9  # of a share
OF_PROCESSOR = 4e-6  # rounding of another processor, as a share of the largest entry of a tensor

Signatures = Mapping[int, bytes]  # the signature of each participant, by its number


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The numbers and names that decide how a client trains in a round, apart from the tensors.

    The digest `told` covers every field, and a guard compares every field with the field of an
    honest server (`flower.client.guard`). So a further field needs no further code there.

    Attributes:
        round: The number of the round, from 1.
        rate: The learning rate.
        epochs: The number of passes over the shard; None for the number in the settings.
        frozen: The endings of the names of frozen tensors.
        restarted: The endings of the names of tensors that start at their first values.
        proximal_mu: The weight of the proximal penalty.
        clipping_norm: The norm that updates must not exceed; None if there is none.
        merges: The number of rounds whose low-rank pairs were added to frozen weights.
    """

    round: int
    rate: float
    epochs: int | None = None
    frozen: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    proximal_mu: float = 0.0
    clipping_norm: float | None = None
    merges: int = 0


def statement(roster: Roster) -> bytes:
    """Returns the message that all participants of a roster sign."""
    return PURPOSE + roster.digest


def vouch(secret: Secret, roster: Roster, identities: Identities, least: int) -> bytes:
    """Signs a roster; a client calls this function.

    Args:
        secret: The secret state of the client: its private key, and the last sum that it took part
            in.
        roster: The roster of the sum.
        identities: The client's own identity, and the pinned public keys of all clients.
        least: The smallest number of participants with which the client takes part.

    Returns:
        The signature, 64 bytes.

    Raises:
        ValueError: If the client must not take part in such a sum.
    """
    _check_roster(secret, roster, identities.pins, least)
    return identities.of(secret.client).sign(statement(roster))


def check_signed(
    secret: Secret, roster: Roster, pins: Pins, signatures: Signatures, least: int
) -> None:
    """Refuses a roster that not all of its participants have signed; a client calls this function.

    Args:
        secret: The secret state of the client.
        roster: The roster of the sum.
        pins: The pinned public keys of all clients.
        signatures: The signatures that the server sent.
        least: The smallest number of participants with which the client takes part.

    Raises:
        ValueError: If a signature is missing or does not fit the roster, or if the client must not
            take part in such a sum.
    """
    _check_roster(secret, roster, pins, least)
    if unsigned := unsigned_by(roster, pins, signatures):
        raise _refusal(
            roster,
            f"client {unsigned[0]} has not signed it with the key in {pins.source}; the server or "
            "somebody on the way has changed a key, a client or the round",
        )


def unsigned_by(roster: Roster, pins: Pins, signatures: Signatures) -> list[int]:
    """Returns the participants without a valid signature of a roster, sorted by their numbers."""
    signed = statement(roster)
    return [
        client
        for client in sorted(roster.clients)
        if not pins.signed(client, signed, signatures.get(client, bytes(SIGNATURE_BYTES)))
    ]


def told(tensors: State, initial: State, assignment: Assignment) -> bytes:
    """Returns the digest of an instruction, which the masks of a secure sum depend on.

    Without the digest, a server could send one client an honest instruction, and all other clients
    an instruction that does not move their tensors. The sum would then be the update of that one
    client. A tensor that differs from the initial tensor only by the rounding of another processor
    counts as the initial tensor.

    Args:
        tensors: The exchanged tensors in the server's coordinates, and all further tensors sent.
        initial: The exchanged tensors before round 1, as the client has computed them.
        assignment: All that the message says about the client's work, apart from the tensors.

    Returns:
        The digest, 32 bytes.

    Example:
        >>> import torch
        >>> start = {"w": torch.tensor([1.0])}
        >>> one = told(start, start, Assignment(round=1, rate=0.1))
        >>> one == told(start, start, Assignment(round=1, rate=0.0))
        False
    """
    digest = hashlib.sha256(repr(astuple(assignment)).encode())
    for name in sorted(tensors):
        digest.update(_stated(name, tensors[name].detach().cpu().contiguous(), initial))
    return digest.digest()


def _stated(name: str, tensor: Tensor, initial: State) -> bytes:
    """Returns a tensor with its name as bytes that state their own length.

    Without the lengths, the numbers of one tensor could imitate the name of another tensor.
    """
    known = name in initial and _is_initial(tensor, initial[name].cpu())
    content = b"" if known else tensor.numpy().tobytes()
    heading = repr((name, tuple(tensor.shape), str(tensor.dtype), known)).encode()
    return f"{len(heading)} {len(content)} ".encode() + heading + content


def _is_initial(tensor: Tensor, known: Tensor) -> bool:
    if tensor.shape != known.shape or not tensor.numel():
        return tensor.shape == known.shape
    return bool((tensor - known).abs().max() <= OF_PROCESSOR * known.abs().max())


def check_shares(roster: Roster, most: float) -> None:
    """Refuses a roster in which one client weighs so much that the sum would be its update.

    Args:
        roster: The roster of the sum.
        most: The largest share of one client in the sum, in (0, 1]; values below 1/K for K clients
            count as 1/K.

    Raises:
        ValueError: If a client has a larger share.
    """
    largest = max(roster.members, key=lambda member: member.share)
    share, bound = largest.share / roster.share(roster.clients), max(most, 1 / len(roster.members))
    if share > bound + ROUNDING:
        raise ValueError(
            f"roster of round {roster.round} refused (max_client_share): it gives client "
            f"{largest.client} a share of {share:.3g} in the mean, expected at most {bound:.3g}"
        )


def _check_roster(secret: Secret, roster: Roster, pins: Pins, least: int) -> None:
    least = max(least, FEWEST)
    if len(roster.members) < least:
        raise _refusal(roster, f"it lists {len(roster.members)} clients, expected {least} or more")
    if strangers := sorted(roster.clients - pins.keys.keys()):
        raise _refusal(roster, f"client {strangers[0]} has no key in {pins.source}")
    if roster.of(secret.client).key != secret.public:
        raise _refusal(roster, "it lists a public key for this client that is not its own")
    if secret.roster is not None and roster.round <= secret.roster.round:
        raise _refusal(
            roster, f"expected a round after {secret.roster.round}, the last round of this client"
        )


def _refusal(roster: Roster, reason: str) -> ValueError:
    return ValueError(f"roster of round {roster.round} refused ({SETTING}): {reason}")
