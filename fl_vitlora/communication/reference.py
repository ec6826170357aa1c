"""Full fine-tuning under FedAvg: the one reference that every saving is told against.

The reference is a run of the same clients that trains the whole model and averages it. It has the
same rounds with the same participants, and its messages have measured sizes. Summed up, it sends

    F = K·(q + g)  +  Σ_t ( |P_t|·D  +  |U_t|·U )

    K  clients, each greeted once: a question of q bytes, an answer of g bytes
    P  participants of round t: each is sent one whole model, a message of D bytes
    U  those of them whose update the server took: each sends one whole model, a message of U bytes

Nothing else counts. The reference has no messages for evaluation, since full fine-tuning can be
evaluated by the server; it repeats no message, whatever a run had to repeat; and a participant that
failed has received a model and has sent none. It does not depend on what a run trains, on its
strategy, its codecs or its evaluator. All numbers are float32.

Caching helps full fine-tuning once only. Every tensor changes in every round, so the one download
that a client could do without is that of round 1: it has built the same initial model. A run whose
downlink is coded as changes leaves that download out. Then the reference leaves it out too
(``start_is_known``): what a run spares by caching, full fine-tuning may spare as well. A run
without a coded downlink sends the initial model, and so does its reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from fl_vitlora.communication.ledger import Direction, Entry, Ledger, Purpose


@dataclass(frozen=True, kw_only=True)
class MessageSizes:
    """Measured bytes of the messages of a run that trains the whole model.

    Attributes:
        question: q, the server's question before the first round.
        greeting: g, a client's answer to it.
        downlink: D, a message to a client with the whole model.
        uplink: U, a reply with the whole model.
    """

    question: int
    greeting: int
    downlink: int
    uplink: int


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """Which clients took part in a round.

    Attributes:
        answered: Clients whose update the server took.
        failed: Clients that were asked, and whose update did not come or was refused.
    """

    answered: tuple[int, ...]
    failed: tuple[int, ...] = ()

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Self:
        """Reads a line of `rounds.jsonl`."""
        failed = (failure["client"] for failure in line["failures"])
        return cls(answered=tuple(line["participants"]), failed=tuple(failed))


def full_fine_tuning(
    clients: int, rounds: Sequence[Attendance], sizes: MessageSizes, *, start_is_known: bool = False
) -> Ledger:
    """Writes the ledger that full fine-tuning under FedAvg would have.

    Args:
        clients: K, how many there are.
        rounds: The participants of each round, from the first one on.
        sizes: Bytes of the messages.
        start_is_known: True if round 1 needs no download, because clients have built the initial
            model and the run whose reference this is does not send it either.

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
