"""The signatures of a roster in Flower's records (`privacy.agreement` says what they are for).

Server and clients send these messages:

    vouching   server → client   the roster of the round
               client → server   the client's signature of this roster
    training   server → client   the roster with the signatures of all participants
"""

from __future__ import annotations

from flwr.app import ConfigRecord, Context, MessageType, RecordDict

from fl_vitlora.encryption.identities import SIGNATURE_BYTES, Identities
from fl_vitlora.flower.wire import masking
from fl_vitlora.privacy.agreement import Signatures, check_signed, vouch
from fl_vitlora.privacy.secure_sum import Roster

VOUCH = f"{MessageType.QUERY}.vouch"
SIGNATURE, SIGNATURES = "signature", "signatures"


# the functions of a client


def sign(context: Context, asked: RecordDict, identities: Identities, least: int) -> RecordDict:
    """Signs the roster in a `VOUCH` message.

    Args:
        context: The Flower context of the client, which stores its keys and its last roster.
        asked: The records of the message.
        identities: The client's own identity, and the pinned public keys of all clients.
        least: The smallest number of participants with which the client takes part.

    Returns:
        The records of the answer.

    Raises:
        ValueError: If the client must not take part in such a sum.
    """
    roster = masking.read_roster(asked)
    signature = vouch(masking.kept_secret(context), roster, identities, least)
    return RecordDict({masking.RECORD: ConfigRecord({SIGNATURE: signature})})


def check(context: Context, instruction: RecordDict, identities: Identities, least: int) -> None:
    """Refuses an instruction whose roster not all participants have signed.

    Args:
        context: The Flower context of the client, which stores its keys and its last roster.
        instruction: The records of the instruction, with the roster and the signatures.
        identities: The client's own identity, and the pinned public keys of all clients.
        least: The smallest number of participants with which the client takes part.

    Raises:
        ValueError: If a signature is missing or does not fit, or if the client must not take part
            in such a sum.
    """
    roster = masking.read_roster(instruction)
    secret, signatures = masking.kept_secret(context), read_signatures(instruction, roster)
    check_signed(secret, roster, identities.pins, signatures, least)


def read_signatures(instruction: RecordDict, roster: Roster) -> Signatures:
    """Returns the signatures in an instruction, by client; values of other types are left out."""
    given = masking.record_of(instruction).get(SIGNATURES)
    pairs = zip(roster.members, given if isinstance(given, list) else (), strict=False)
    return {m.client: signature for m, signature in pairs if isinstance(signature, bytes)}


# the functions of the server


def ask_to_sign(roster: Roster) -> RecordDict:
    """Returns the records of a `VOUCH` message, which asks for the signature of a roster."""
    return RecordDict({masking.RECORD: masking.write_roster(roster)})


def read_signature(reply: RecordDict) -> bytes:
    """Returns the signature in the answer to a `VOUCH` message.

    Raises:
        ValueError: If the answer has no signature, or one of the wrong length.
    """
    signature = masking.field_of(masking.record_of(reply), SIGNATURE)
    if not isinstance(signature, bytes) or len(signature) != SIGNATURE_BYTES:
        raise ValueError(f"message refused: a signature must have {SIGNATURE_BYTES} bytes")
    return signature


def write_signed(roster: Roster, signatures: Signatures) -> ConfigRecord:
    """Returns a roster as a record of an instruction, with the signatures if there are any."""
    record = masking.write_roster(roster)
    if signatures:
        record[SIGNATURES] = [signatures.get(m.client, b"") for m in roster.members]
    return record
