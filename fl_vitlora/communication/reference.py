"""Full fine-tuning with FedAvg: the reference for all savings of bytes.

The reference is an imagined run of the same clients that trains and averages the whole model. The
imagined run has the same rounds with the same participants as the real run, and the sizes of its
messages are measured (`flower.wire.byte_counts`). The reference sends F bytes in total:

    F = K·(q + g)  +  Σ_t ( |P_t|·D  +  |U_t|·U )

    K    clients; the server greets each once: a question of q bytes, an answer of g bytes
    P_t  participants of round t: each receives one whole model, a message of D bytes
    U_t  participants with an accepted update: each sends one whole model, a message of U bytes

No other messages of the reference are counted. The reference has no messages for evaluation,
because with full fine-tuning the server can evaluate the model. The reference repeats no message,
even if the real run repeated some. A participant that failed has received a model and has not sent
one. The reference does not depend on the tensors that the real run trains, nor on its strategy,
codecs or evaluator. All numbers are float32.

Caching helps full fine-tuning only once. Every tensor changes in every round, so a client can omit
only the download of round 1, because it has built the same initial model. If a real run sends only
changes to its clients and so omits the download of round 1, the reference omits it, too
(``start_is_known``), and full fine-tuning gets the same advantage from caching. If the real run
sends the initial model, the reference also sends it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from fl_vitlora.communication.ledger import Direction, Entry, Ledger, Purpose


@dataclass(frozen=True, kw_only=True)
class MessageSizes:
    """The sizes, in bytes, of the messages of a run that trains the whole model.

    Attributes:
        question: The size q of the message in which the server asks a node for its client number,
            before the first round.
        greeting: The size g of a client's answer to the server's question before the first round.
        downlink: The size D of a message to a client with the whole model.
        uplink: The size U of a reply with the whole model.
    """

    question: int
    greeting: int
    downlink: int
    uplink: int


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """The clients that took part in a round.

    Attributes:
        answered: The clients whose update the server accepted.
        failed: The clients that were asked but whose update did not arrive or was refused.
    """

    answered: tuple[int, ...]
    failed: tuple[int, ...] = ()

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self:
        """Returns the attendance that a line of `rounds.jsonl` describes."""
        failed = (failure["client"] for failure in line["failures"])
        return cls(answered=tuple(line["participants"]), failed=tuple(failed))


def full_fine_tuning(
    clients: int, rounds: Sequence[Attendance], sizes: MessageSizes, *, start_is_known: bool = False
) -> Ledger:
    """Returns the ledger that full fine-tuning with FedAvg would have.

    Args:
        clients: The number K of clients.
        rounds: The participants of each round, from the first round on.
        sizes: The sizes of the messages in bytes.
        start_is_known: True if round 1 needs no download, because clients have built the initial
            model and the real run does not send it either.

    Returns:
        A ledger with an entry for each message; its total is F.

    Example:
        >>> sizes = MessageSizes(question=1, greeting=2, downlink=100, uplink=90)
        >>> rounds = [Attendance(answered=(0, 1)), Attendance(answered=(0,), failed=(1,))]
        >>> full_fine_tuning(2, rounds, sizes).total() == 2 * (1 + 2) + (200 + 180) + (200 + 90)
        True
        >>> full_fine_tuning(2, rounds, sizes, start_is_known=True).total("downlink")
        202
    """
    ledger = Ledger()

    def send(number: int, purpose: Purpose, client: int, direction: Direction, size: int) -> None:
        ledger.record(
            Entry(round=number, purpose=purpose, client=client, direction=direction, overhead=size)
        )

    for client in range(clients):
        send(0, "greeting", client, "downlink", sizes.question)
        send(0, "greeting", client, "uplink", sizes.greeting)
    for number, present in enumerate(rounds, start=1):
        if number > 1 or not start_is_known:
            for client in sorted((*present.answered, *present.failed)):
                send(number, "training", client, "downlink", sizes.downlink)
        for client in sorted(present.answered):
            send(number, "training", client, "uplink", sizes.uplink)
    return ledger
