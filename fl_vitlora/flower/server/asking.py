"""Sends a question to many clients, and asks again the clients whose answer cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.common.constant import ErrorCode

from fl_vitlora.communication.ledger import Purpose
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.federation.client_records import ClientRecords, Comparisons
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.flower.server.composing import compose
from fl_vitlora.flower.server.posting import Post, Reply, Request
from fl_vitlora.flower.server.sending import Addressed, Sealed, ServerEnd
from fl_vitlora.flower.wire import masking, vouching
from fl_vitlora.flower.wire.layouts import MessageLayouts
from fl_vitlora.flower.wire.round_message import Writer
from fl_vitlora.population.ranks import rank_of
from fl_vitlora.privacy.agreement import Signatures
from fl_vitlora.privacy.secure_sum import Roster

KINDS: Mapping[Purpose, str] = {
    "training": MessageType.TRAIN,
    "evaluation": MessageType.EVALUATE,
}
UNHEARD = (  # the errors that Flower itself reports when a node does not answer
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)

T = TypeVar("T")
How = Literal["silent", "raised", "unusable"]
Reasons = dict[int, tuple[str, ...]]  # for each client, one reason for each failed attempt


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The reason why a client's answer cannot be used.

    Attributes:
        how: "silent" if the client did not answer, "raised" if the client's app raised an error,
            "unusable" if the reply is not a valid answer.
        reason: The cause in words, as far as the server knows it.
    """

    how: How
    reason: str


@dataclass(frozen=True, kw_only=True)
class Answers(Generic[T]):
    """The answers of clients to one question.

    Attributes:
        read: The contents of the usable answers, by client.
        reasons: For each client without a usable answer, the reasons of its failed attempts.
        taken_apart: The clients that trained alone because the workers failed on a batch of several
            clients.
    """

    read: dict[int, T]
    reasons: Reasons
    taken_apart: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Question(Generic[T]):
    """A question to clients: to train for a round, or to evaluate a model.

    Attributes:
        round: The number of the round, from 1.
        asked: The instruction to each client that is asked, by client.
        read: A function that reads one answer. The arguments of `read` are the instruction, the
            records of the reply, and the names and shapes of the tensors. `read` raises a
            `ValueError` if the reply is not a valid answer.
        purpose: The purpose under which the ledger counts the messages.
        roster: The members of the secure sum; None without secure aggregation.
        signatures: The members' signatures of the roster; empty if clients do not sign it.
    """

    round: int
    asked: Mapping[int, Instruction]
    read: Callable[[Instruction, RecordDict, MessageLayouts], T]
    purpose: Purpose = "training"
    roster: Roster | None = None
    signatures: Signatures = field(default_factory=dict)

    def signed_roster(self) -> ConfigRecord | None:
        """Returns the record of the roster, which all messages share; None without a roster."""
        if self.roster is None:
            return None
        return vouching.write_signed(self.roster, self.signatures)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks clients, and repeats the question in the same round if a retry may help.

    Attributes:
        post: The post, which sends the messages.
        end: The object that encodes instructions and decodes replies.
        records: The server's records of the clients.
        config: The configuration of the experiment.
        layout: The names and shapes of all exchanged tensors.
        repeats_errors: True if the server asks a client once more after the client's app raised an
            error.
    """

    post: Post
    end: ServerEnd
    records: ClientRecords
    config: Config
    layout: Layout
    repeats_errors: bool

    def ask(self, question: Question[T]) -> Answers[T]:
        """Asks clients, and asks once more the clients whose answer cannot be used.

        The second message to a client contains all tensors that the client needs, because the
        server does not know what the client stored in the first attempt. A client that did not
        answer in time is not asked again.

        Under secure aggregation, a client that has already sent a masked vector is never asked
        again: two vectors under one mask reveal their difference. The server can be sure that a
        client has sent no masked vector only if the client's app raised an error.
        """
        answers, refused, apart = self._ask_once(question, question.asked)
        again = {
            client: question.asked[client]
            for client, one in refused.items()
            if self._is_asked_again(one, question.roster)
        }
        more: dict[int, T] = {}
        still: dict[int, Refused] = {}
        if again:
            for client in again:
                self.records.missed(client)
            more, still, others = self._ask_once(question, again)
            apart |= others
        reasons: Reasons = {
            client: (one.reason, still[client].reason) if client in still else (one.reason,)
            for client, one in refused.items()
            if client not in more
        }
        return Answers(read=answers | more, reasons=reasons, taken_apart=frozenset(apart))

    def _is_asked_again(self, refused: Refused, roster: Roster | None) -> bool:
        """Returns True if a second attempt may succeed and cannot reveal an update."""
        if refused.how == "raised":
            return self.repeats_errors
        return refused.how == "unusable" and roster is None

    def _ask_once(
        self, question: Question[T], asked: Mapping[int, Instruction]
    ) -> tuple[dict[int, T], dict[int, Refused], set[int]]:
        """Asks clients once, and notes which clients received the changes of the model.

        Returns:
            First, the contents of the usable answers, by client. Second, the failures, by client.
            Third, the clients that trained alone because the workers failed on a batch of several
            clients.
        """
        sealed = dict(zip(asked, self._sealed(question, list(asked.values())), strict=True))
        requests = [
            Request.to(
                self.records.node_of(client), KINDS[question.purpose], one.folded, one.groups
            )
            for client, one in sealed.items()
        ]
        replies = {
            self.records.client_at(reply.node): reply
            for reply in self.post.counted(question.round, question.purpose, requests, self.records)
        }
        answers: dict[int, T] = {}
        refused: dict[int, Refused] = {}
        for client, instruction in asked.items():
            try:
                answers[client] = self._read(
                    question, instruction, sealed[client].layouts, replies.get(client)
                )
            except _RefusedReplyError as error:
                refused[client] = error.refused
            if client in answers:
                self.records.heard(client)
            else:
                self.records.lost(client)
        states = self.post.states
        apart = {
            client
            for client, reply in replies.items()
            if states.is_taken_apart(reply.message.metadata.reply_to_message_id)
        }
        return answers, refused, apart

    def _read(
        self,
        question: Question[T],
        asked: Instruction,
        layouts: MessageLayouts,
        reply: Reply | None,
    ) -> T:
        """Reads the answer of one client.

        Raises:
            _RefusedReplyError: If there is no answer, or if the answer cannot be used.
        """
        if reply is None:
            reason = f"no reply within {self.post.timeout:g} s"
            raise _RefusedReplyError(Refused(how="silent", reason=reason))
        if reply.message.has_error():
            error = reply.message.error
            how: How = "silent" if error.code in UNHEARD else "raised"
            raise _RefusedReplyError(Refused(how=how, reason=str(error.reason)))
        try:
            content = self.end.open(reply.opened(), layouts)
            return question.read(asked, content, layouts)
        except ValueError as error:
            raise _RefusedReplyError(Refused(how="unusable", reason=str(error))) from None

    def _sealed(self, question: Question[T], instructions: Sequence[Instruction]) -> list[Sealed]:
        """Returns the encoded messages to clients."""
        writer, addressed, equal = Writer(self.layout), [], Comparisons()
        roster, names = question.signed_roster(), self.end.cached_names
        for asked in instructions:
            memory = self.records.of(asked.client).memory
            message = compose(asked, memory, self._cached(asked, names, equal))
            content = writer.write(message, rank_of(self.config, asked.client))
            if roster is not None:
                content[masking.RECORD] = roster
            addressed.append(Addressed(client=asked.client, content=content))
        return self.end.seal(question.round, addressed)

    def _cached(
        self, asked: Instruction, names: frozenset[str], equal: Comparisons
    ) -> frozenset[str]:
        """Returns the names of the tensors that need not be sent because the client has them.

        Args:
            asked: The instruction to the client.
            names: The names of the tensors that may be left out of messages.
            equal: The function that compares two tensors.
        """
        model = {name: t for name, t in asked.model.tensors.items() if name in names}
        return self.records.cached(asked.client, model, asked.plan, asked.measured, equal=equal)


class _RefusedReplyError(Exception):
    """An error for a reply that is missing, reports an error, or cannot be read."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused
