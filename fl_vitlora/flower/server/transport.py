"""The server's end of the wire: instructions out, updates in, every message counted.

Flower names nodes by random ids; here they are clients, named by the number of their shard, which
each node is asked for once. Replies are sorted by client, so that sums do not depend on who was
faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fl_vitlora.communication.ledger import Direction, Entry, Ledger, Purpose
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.data.class_names import disagreement
from fl_vitlora.errors import UserError
from fl_vitlora.federation.client_cache import ClientCache
from fl_vitlora.federation.evaluation import Answer, Measured
from fl_vitlora.federation.failures import Failure, first_line, first_reasons
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.polling import pause
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.server.sending import Addressed, ServerEnd
from fl_vitlora.flower.wire import masking, messages
from fl_vitlora.flower.wire.byte_counts import message_bytes
from fl_vitlora.flower.wire.contents import ConfigValue, Instruction, Writer, read_update
from fl_vitlora.flower.wire.reported_counts import (
    Counts,
    limited,
    read_accuracy,
    read_images,
    read_loss,
)
from fl_vitlora.population.ranks import rank_of
from fl_vitlora.privacy.secure_sum import Roster, Seeds
from fl_vitlora.state import State
from fl_vitlora.storage.trees import Tree
from fl_vitlora.strategy import ClientPlan, Update

NODE_POLL_SECONDS = 0.05
DOWNLINK: Direction = "downlink"
UPLINK: Direction = "uplink"
MOST_AWAITED = 500  # messages whose replies are looked for, the oldest, while these come in
NOBODY = -1  # in the ledger: a node that is no client

KINDS: Mapping[Purpose, str] = {
    "training": MessageType.TRAIN,
    "evaluation": MessageType.EVALUATE,
}
UNHEARD = (  # what Flower answers in place of a node that does not
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.NODE_UNAVAILABLE,
)

T = TypeVar("T")
How = Literal["silent", "raised", "unusable"]
Tap = Callable[[Message], None]
Reasons = dict[int, tuple[str, ...]]  # by client: why it failed, each time that it was asked


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Why what a client answered is of no use.

    Attributes:
        how: It did not answer, its app raised, or it sent what is no answer.
        told: What is known of it.
    """

    how: How
    told: str


class Transport:
    """Carries instructions and updates over Flower's grid.

    Args:
        grid: Flower's.
        initial: The exchanged tensors before the first round.
        ledger: Where messages are counted.
        config: The experiment, for the ranks of clients and for codecs; by default there are none.
        class_names: Of the run, in its order, which every client must have; without them, classes
            are not compared.
        sums: Adds up updates that nobody shall see; without it, they are read one by one.
        timeout: Seconds to wait for the replies of a round, and as long again for those of clients
            that are asked once more.
        repeats_errors: Whether a client whose app raised is asked once more.
        states: What simulated clients remember; is told which replies are not waited for any more,
            and tells who was taken out of its bundle.
        tap: Is shown every message that passes, for inspection.
        stop: Ends all waiting when it is set.

    Attributes:
        taken_apart: Clients whose update of the last round is one that they made alone, after
            workers were lost over all who were to train with them; it may be rounded otherwise.
    """

    def __init__(
        self,
        grid: Grid,
        initial: State,
        ledger: Ledger,
        *,
        config: Config | None = None,
        class_names: Sequence[str] | None = None,
        sums: SecureAggregator | None = None,
        timeout: float,
        repeats_errors: bool = True,
        states: ClientStates | None = None,
        tap: Tap | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._grid = grid
        self._layout = Layout.of(initial)
        self._holdings = ClientCache(initial)
        self._plan = ClientPlan()  # of the last round
        self._config = config or Config()
        self._class_names = class_names
        self._end = ServerEnd(initial, self._config)
        self._sums = sums
        self._ledger = ledger
        self._timeout = timeout
        self._repeats_errors = repeats_errors
        self._states = states or ClientStates()
        self.taken_apart: tuple[int, ...] = ()
        self._tap = tap
        self._stop = stop or threading.Event()
        self._nodes: dict[int, int] = {}  # client -> node id
        self._clients: dict[int, int] = {}  # node id -> client
        self._images: dict[int, int] = {}  # client -> how many, as it greeted
        self._test_images: dict[int, int] = {}  # client -> how many, as it first said
        self._training = None if config is None else config.training

    @property
    def clipped(self) -> int | None:
        """Counts the scalars beyond the range of the last secure sum; None without sums."""
        return None if self._sums is None else self._sums.clipped

    def greet(self, clients: int) -> dict[int, int]:
        """Waits for the nodes and asks each which client it is; workers make ready meanwhile.

        Args:
            clients: How many nodes are to come.

        Returns:
            The number of images of each client.

        Raises:
            RuntimeError: When a node does not answer, or two hold the same shard.
            UserError: When a client has other classes than the run, or in another order.
        """
        nobody = [Addressed(client=NOBODY, content=RecordDict())]
        (question,) = self._end.seal(0, nobody)
        requests = [
            Message(question, dst_node_id=node, message_type=MessageType.QUERY)
            for node in self._wait_for_nodes(clients)
        ]
        replies = self._send(requests)
        samples: dict[int, int] = {}
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a client cannot start: {first_line(str(reply.error.reason))}")
            try:
                content = self._end.open(NOBODY, reply.content)
                metrics = messages.metrics_of(content)
                client = messages.whole(metrics, messages.CLIENT)
                images = read_images(metrics)
                names = messages.class_names_of(content)
                if self._sums is not None:
                    self._sums.greeted(client, content)
            except ValueError as error:
                raise RuntimeError(f"a node greets as no client of ours does: {error}") from None
            self._compare_classes(client, names)
            if client in samples:
                raise RuntimeError(f"two nodes hold the shard of client {client}")
            samples[client] = images
            self._nodes[client] = reply.metadata.src_node_id
            self._clients[reply.metadata.src_node_id] = client
        if len(samples) < len(requests):
            raise RuntimeError(f"{len(requests) - len(samples)} clients did not answer in time")
        for message in (*requests, *replies):
            self._count(message, 0, "greeting")
        self._images = dict(sorted(samples.items()))
        return self._images

    def _compare_classes(self, client: int, names: Sequence[str]) -> None:
        """Refuses a client whose labels mean something else than the run's."""
        if self._class_names is None:
            return
        if differs := disagreement(names, self._class_names):
            raise UserError(
                f"client {client} has other classes than this run: {differs}; give its node the "
                "run's list, --node-config 'classes=\"FILE\"', by which labels are matched by name"
            )

    def snapshot(self) -> Tree:
        """Returns what is known of the clients and sent to them, for a checkpoint."""
        return {
            "holdings": self._holdings.snapshot(),
            "end": self._end.snapshot(),
            "plan": dict(vars(self._plan)),
        }

    def restore(self, tree: Tree) -> None:
        """Takes up what `snapshot` returned."""
        self._holdings.restore(tree["holdings"])
        self._end.restore(tree["end"])
        plan = tree["plan"]
        self._plan = replace(
            ClientPlan(**plan), frozen=tuple(plan["frozen"]), restarted=tuple(plan["restarted"])
        )

    def _wait_for_nodes(self, clients: int) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while len(nodes := list(self._grid.get_node_ids())) < clients:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"only {len(nodes)} of {clients} nodes joined within {self._timeout:g} s"
                )
            self._heed_stop()
            time.sleep(NODE_POLL_SECONDS)
        return nodes

    def exchange(
        self, server_round: int, instructions: Sequence[Instruction]
    ) -> tuple[list[Update], list[Failure]]:
        """Sends the instructions of a round and waits for the updates; see `_answers` for failures.

        Args:
            server_round: From 1.
            instructions: One for each participant.

        Returns:
            Updates and failures, each sorted by client; of a secure sum there is one update, the
            mean of all clients that did not fail.
        """
        asked = {one.client: one for one in sorted(instructions, key=lambda one: one.client)}
        self._plan = instructions[0].plan
        self.taken_apart = ()
        weights = limited({c: self._images[c] for c in asked}, self._config.max_client_share)
        if self._sums is None:
            read, reasons = self._answers(server_round, asked, self._read_update)
            updates = [replace(read[client], samples=weights[client]) for client in sorted(read)]
        else:
            updates, reasons = self._add_up(self._sums, server_round, asked, weights)
        for client, instruction in asked.items():
            if client in reasons:
                self._holdings.missed(client)
            else:
                self._holdings.answered(client, server_round, instruction.model, instruction.plan)
        self.taken_apart = tuple(sorted(set(self.taken_apart) - reasons.keys()))
        return updates, [
            Failure.of(server_round, client, *reasons[client]) for client in sorted(reasons)
        ]

    def _add_up(
        self,
        sums: SecureAggregator,
        server_round: int,
        asked: Mapping[int, Instruction],
        weights: Mapping[int, int],
    ) -> tuple[list[Update], Reasons]:
        """Asks for masked updates, of which it sees the sum alone."""
        roster = sums.roster(server_round, weights)
        contents, reasons = self._answers(
            server_round, asked, lambda asked, content: content, roster=roster
        )
        layout = self._layout.without(self._layout.ending_with(self._plan.frozen))
        expected = {client: self._expected(one) for client, one in asked.items()}
        updates, others = sums.add_up(
            roster, contents, layout, self._ask_for_seeds, images=weights, expected=expected
        )
        return updates, reasons | {client: (reason,) for client, reason in others.items()}

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> list[Answer]:
        """Lets every client measure a model on its own encrypted test images.

        Args:
            server_round: The round that made it.
            model: In the server's coordinates.
            views: Names of `data.owner.views_of`, as who sees the test images.

        Returns:
            The answers, sorted by client.

        Raises:
            RuntimeError: When a client does not answer as it should; an accuracy over some of the
                test images only would not be comparable.
        """
        config: dict[str, ConfigValue] = {
            messages.SERVER_ROUND: server_round,
            messages.VIEWS: list(views),
        }
        asked = {
            client: Instruction(client=client, model=model, config=config, plan=self._plan)
            for client in sorted(self._nodes)
        }
        measured, reasons = self._answers(
            server_round,
            asked,
            lambda asked, content: self._read_measured(asked.client, content, views),
            "evaluation",
        )
        if reasons:
            failures = [Failure.of(server_round, client, *reasons[client]) for client in reasons]
            raise RuntimeError(
                f"round {server_round}: {len(failures)} of {len(asked)} clients did not measure "
                f"the model{first_reasons(failures)}"
            )
        for client in asked:
            self._holdings.measured(client, model)
        return [Answer(client, *measured[client]) for client in sorted(measured)]

    def _answers(
        self,
        server_round: int,
        asked: Mapping[int, Instruction],
        read: Callable[[Instruction, RecordDict], T],
        purpose: Purpose = "training",
        roster: Roster | None = None,
    ) -> tuple[dict[int, T], Reasons]:
        """Asks clients, and once more in the same round those whose answer cannot be used.

        Who failed begins again: it is sent all that it needs, whatever it may remember of the first
        attempt. Who did not answer in time is not asked again. In a secure sum neither is who sent
        anything: that may have been a masked vector, and two masked vectors under one mask betray
        their difference. Only a client whose app raised has sent none.

        Args:
            server_round: From 1.
            asked: By client.
            read: Makes of an instruction and of the records of its reply what is returned, or
                raises a `ValueError`.
            purpose: Training or evaluation.
            roster: Of a secure sum.

        Returns:
            What was read, by client; and of each that failed why, at first and when asked again.
        """
        answers, refused = self._ask(server_round, asked, read, purpose, roster)
        again = {c: asked[c] for c, how in refused.items() if self._is_asked_again(how, roster)}
        if not again:
            return answers, {client: (how.told,) for client, how in refused.items()}
        for client in again:
            self._holdings.missed(client)
        more, still = self._ask(server_round, again, read, purpose, roster)
        return answers | more, {
            client: (how.told, still[client].told) if client in still else (how.told,)
            for client, how in refused.items()
            if client not in more
        }

    def _is_asked_again(self, refused: Refused, roster: Roster | None) -> bool:
        """Tells whether another attempt may help, and betrays nothing."""
        if refused.how == "raised":
            return self._repeats_errors
        return refused.how == "unusable" and roster is None

    def _ask(
        self,
        server_round: int,
        asked: Mapping[int, Instruction],
        read: Callable[[Instruction, RecordDict], T],
        purpose: Purpose,
        roster: Roster | None,
    ) -> tuple[dict[int, T], dict[int, Refused]]:
        """Asks clients once; notes who has followed what it was sent."""
        requests = self._pack(server_round, list(asked.values()), KINDS[purpose], roster)
        replies = {
            self._clients[reply.metadata.src_node_id]: reply
            for reply in self._counted(server_round, purpose, requests)
        }
        answers: dict[int, T] = {}
        refused: dict[int, Refused] = {}
        for client, instruction in asked.items():
            reply = replies.get(client)
            if reply is None:
                refused[client] = Refused(how="silent", told=f"no reply within {self._timeout:g} s")
            elif reply.has_error():
                how: How = "silent" if reply.error.code in UNHEARD else "raised"
                refused[client] = Refused(how=how, told=str(reply.error.reason))
            else:
                try:
                    content = self._end.open(client, reply.content, instruction.plan.frozen)
                    answers[client] = read(instruction, content)
                except ValueError as error:
                    refused[client] = Refused(how="unusable", told=str(error))
            if reply is not None and self._states.is_taken_apart(
                reply.metadata.reply_to_message_id
            ):
                self.taken_apart = (*self.taken_apart, client)
            if client in answers:
                self._end.answered(client)
            else:
                self._end.missed(client)
        return answers, refused

    def _pack(
        self,
        server_round: int,
        instructions: Sequence[Instruction],
        kind: str,
        roster: Roster | None,
    ) -> list[Message]:
        """Writes the messages to clients, as they travel."""
        writer = Writer(self._layout)
        addressed = []
        for asked in instructions:
            content = writer.write(
                asked,
                self._holdings.of(asked.client),
                self._spared(asked),
                rank_of(self._config, asked.client),
            )
            if roster is not None:
                content[masking.RECORD] = masking.write_roster(roster)
            addressed.append(Addressed(client=asked.client, content=content))
        return [
            Message(content, dst_node_id=self._nodes[one.client], message_type=kind)
            for one, content in zip(addressed, self._end.seal(server_round, addressed), strict=True)
        ]

    def _spared(self, asked: Instruction) -> frozenset[str]:
        """Names the tensors that a client need not be sent."""
        if not self._end.spares:
            return frozenset()
        return self._holdings.cached(asked.client, asked.model.tensors, asked.plan)

    def _read_update(self, asked: Instruction, content: RecordDict) -> Update:
        """Reads an update, and sees to it that it keeps to its norm."""
        rank = rank_of(self._config, asked.client)
        update = read_update(
            content,
            self._layout,
            asked,
            rank,
            population=len(self._nodes),
            expected=self._expected(asked),
        )
        return self._end.bounded(update, self._norm(asked))

    def _read_measured(
        self, client: int, content: RecordDict, views: Sequence[str]
    ) -> tuple[int, Measured]:
        """Reads what a client measured, on as many images as it did the first time."""
        images, measured = read_measured(content, views)
        first = self._test_images.setdefault(client, images)
        if images != first:
            raise ValueError(f"it reports {images} test images; before it had {first}")
        return images, measured

    def _expected(self, asked: Instruction) -> Counts:
        """Tells what the update of a client must state; a strategy may ask for other epochs."""
        training, epochs = self._training, asked.config.get(messages.LOCAL_EPOCHS)
        if training is not None and isinstance(epochs, int):
            training = replace(training, epochs=epochs)
        return Counts.of(self._images[asked.client], training)

    def _norm(self, asked: Instruction) -> float | None:
        """Tells to which norm a client clips its update, by its settings or as it was asked."""
        told = asked.config.get(messages.CLIPPING_NORM)
        return float(told) if isinstance(told, int | float) else self._config.privacy.clipping_norm

    def _ask_for_seeds(
        self, roster: Roster, left: frozenset[int], dropped: frozenset[int]
    ) -> Mapping[int, Seeds]:
        """Asks those left in a secure sum for their seeds with those who dropped out."""
        question = masking.ask_for_seeds(roster, dropped)
        addressed = [Addressed(client=client, content=question) for client in sorted(left)]
        requests = [
            Message(content, dst_node_id=self._nodes[one.client], message_type=masking.REVEAL)
            for one, content in zip(addressed, self._end.seal(roster.round, addressed), strict=True)
        ]
        replies = self._counted(roster.round, "revealing", requests)
        seeds = {}
        for reply in replies:
            with suppress(ValueError):  # who answers wrongly has dropped out as well
                if not reply.has_error():
                    client = self._clients[reply.metadata.src_node_id]
                    seeds[client] = masking.read_seeds(self._end.open(client, reply.content))
        return seeds

    def _counted(
        self, server_round: int, purpose: Purpose, requests: Sequence[Message]
    ) -> list[Message]:
        """Sends messages and gathers replies; all are counted, while others are still awaited."""
        return self._send(requests, lambda message: self._count(message, server_round, purpose))

    def _send(
        self, requests: Sequence[Message], note: Callable[[Message], None] = lambda message: None
    ) -> list[Message]:
        """Sends messages and gathers replies until all are there or time is up.

        What has not come by then is void: its client remembers what it did before it was asked.
        Whoever has most images comes first, so that the last ones to train are the quickest.

        Args:
            requests: To one node each.
            note: Is shown each message that passes, either way.
        """
        order = sorted(requests, key=self._images_at, reverse=True)
        sizes = map(self._images_at, order)
        waiting = dict(zip(self._grid.push_messages(order), sizes, strict=False))
        for message in order:
            note(message)
        replies: list[Message] = []
        arrived: list[Message] = []
        answered, awaited = 0, sum(waiting.values())
        begin = last = time.monotonic()
        deadline = begin + self._timeout
        looks = begin
        while waiting and looks <= deadline:  # the last look is after it, however long that is
            self._heed_stop()
            looks = time.monotonic()
            looked_for = islice(waiting, MOST_AWAITED if arrived else None)
            arrived = list(self._grid.pull_messages(set(looked_for)))
            for message in arrived:
                note(message)
                images = waiting.pop(message.metadata.reply_to_message_id, 0)
                answered, awaited, last = answered + images, awaited - images, looks
            replies += arrived
            if waiting:
                now = time.monotonic()
                seconds = pause(
                    now - begin,
                    now - looks,
                    last=last - begin,
                    answered=answered,
                    awaited=awaited,
                )
                self._stop.wait(max(0.0, min(seconds, deadline - now)))
        self._states.give_up(waiting)
        return replies

    def _images_at(self, request: Message) -> int:
        """Tells how many images a message goes to; before the greeting one is as good as any."""
        return self._images.get(self._clients.get(request.metadata.dst_node_id, NOBODY), 1)

    def _heed_stop(self) -> None:
        if self._stop.is_set():
            raise InterruptedError("the run was stopped")

    def _count(self, message: Message, server_round: int, purpose: Purpose) -> None:
        """Counts a message and shows it to whoever looks on."""
        where = message.metadata
        node, direction = where.dst_node_id, DOWNLINK
        if where.reply_to_message_id:
            node, direction = where.src_node_id, UPLINK
        groups, overhead = message_bytes(message)
        self._ledger.record(
            Entry(
                round=server_round,
                purpose=purpose,
                client=self._clients.get(node, NOBODY),
                direction=direction,
                groups=groups,
                overhead=overhead,
            )
        )
        if self._tap is not None:
            self._tap(message)


def read_measured(content: RecordDict, views: Sequence[str]) -> tuple[int, Measured]:
    """Reads what one client measured: its number of test images, accuracy and loss by view.

    Raises:
        ValueError: When a number is missing, or cannot be one of these.
    """
    metrics = messages.metrics_of(content)
    return read_images(metrics), {
        view: (
            read_accuracy(metrics, messages.ACCURACY_OF + view),
            read_loss(metrics, messages.LOSS_OF + view),
        )
        for view in views
    }
