"""The server's end of the wire: instructions out, updates in, every message counted.

Flower names nodes by random ids; here they are clients, named by the number of their shard, which
each node is asked for once. Replies are sorted by client, so that sums do not depend on who was
faster.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl_vitlora.communication.ledger import Direction, Entry, Ledger, Purpose
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.evaluation import Measured
from fl_vitlora.flower import masking, messages
from fl_vitlora.flower.contents import ConfigValue, Instruction, Writer, read_update
from fl_vitlora.flower.failures import Failure, first_line
from fl_vitlora.flower.holdings import Holdings
from fl_vitlora.flower.measuring import message_bytes
from fl_vitlora.flower.server_end import Addressed, ServerEnd
from fl_vitlora.flower.summing import Sums
from fl_vitlora.flower.waiting import pause
from fl_vitlora.global_model import GlobalModel
from fl_vitlora.ranks import rank_of
from fl_vitlora.secure_sum import Roster, Seeds
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Update

NODE_POLL_SECONDS = 0.05
DOWNLINK: Direction = "downlink"
UPLINK: Direction = "uplink"
MOST_AWAITED = 500  # messages whose replies are looked for, the oldest, while these come in
NOBODY = -1  # in the ledger: a node that is no client

Tap = Callable[[Message], None]


class Transport:
    """Carries instructions and updates over Flower's grid.

    Args:
        grid: Flower's.
        initial: The exchanged tensors before the first round.
        ledger: Where messages are counted.
        config: The experiment, for the ranks of clients and for codecs; by default there are none.
        sums: Adds up updates that nobody shall see; without it, they are read one by one.
        timeout: Seconds to wait for the replies of a round.
        tap: Is shown every message that passes, for inspection.
        stop: Ends all waiting when it is set.
    """

    def __init__(
        self,
        grid: Grid,
        initial: State,
        ledger: Ledger,
        *,
        config: Config | None = None,
        sums: Sums | None = None,
        timeout: float,
        tap: Tap | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self._grid = grid
        self._layout = Layout.of(initial)
        self._holdings = Holdings(initial)
        self._plan = ClientPlan()  # of the last round
        self._config = config or Config()
        self._end = ServerEnd(initial, self._config)
        self._sums = sums
        self._ledger = ledger
        self._timeout = timeout
        self._tap = tap
        self._stop = stop or threading.Event()
        self._nodes: dict[int, int] = {}  # client -> node id
        self._clients: dict[int, int] = {}  # node id -> client
        self._images: dict[int, int] = {}  # client -> how many

    def greet(self, clients: int) -> dict[int, int]:
        """Waits for the nodes and asks each which client it is; workers make ready meanwhile.

        Args:
            clients: How many nodes are to come.

        Returns:
            The number of images of each client.

        Raises:
            RuntimeError: When a node does not answer, or two hold the same shard.
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
                raise RuntimeError(f"a client cannot start: {first_line(reply.error.reason)}")
            try:
                content = self._end.open(NOBODY, reply.content)
                metrics = messages.metrics_of(content)
                client = int(messages.scalar(metrics, messages.CLIENT))
                images = int(messages.scalar(metrics, messages.SAMPLES))
                if self._sums is not None:
                    self._sums.greeted(client, images, content)
            except ValueError as error:
                raise RuntimeError(f"a node greets as no client of ours does: {error}") from None
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
        """Sends the instructions of a round and waits for the updates.

        Args:
            server_round: From 1.
            instructions: One for each participant.

        Returns:
            Updates and failures, each sorted by client; of a secure sum there is one update, the
            mean of all clients that did not fail.
        """
        asked = {instruction.client: instruction for instruction in instructions}
        self._plan = instructions[0].plan
        roster = None if self._sums is None else self._sums.roster(server_round, sorted(asked))
        requests = self._pack(server_round, instructions, roster=roster)
        replies = self._ask(server_round, "training", requests)
        by_client = {self._clients[reply.metadata.src_node_id]: reply for reply in replies}
        self._note_followers(asked, by_client)
        updates, reasons = self._read(by_client, asked, roster)
        for client, instruction in asked.items():
            if client not in by_client:
                reasons[client] = f"no reply within {self._timeout:g} s"
            if client in reasons:
                self._holdings.missed(client)
            else:
                self._holdings.answered(client, server_round, instruction.model, instruction.plan)
        return updates, [
            Failure.of(server_round, client, reasons[client]) for client in sorted(reasons)
        ]

    def measure(
        self, server_round: int, model: GlobalModel, views: Sequence[str]
    ) -> list[tuple[int, Measured]]:
        """Lets every client measure a model on its own encrypted test images.

        Args:
            server_round: The round that made it.
            model: In the server's coordinates.
            views: Names of `data.owner.views_of`, as who sees the test images.

        Returns:
            Number of test images and what was measured on them, sorted by client.

        Raises:
            RuntimeError: When a client does not answer as it should; an accuracy over some of the
                test images only would not be comparable.
        """
        config: dict[str, ConfigValue] = {
            messages.SERVER_ROUND: server_round,
            messages.VIEWS: list(views),
        }
        asked = [
            Instruction(client=client, model=model, config=config, plan=self._plan)
            for client in sorted(self._nodes)
        ]
        requests = self._pack(server_round, asked, MessageType.EVALUATE)
        replies = self._ask(server_round, "evaluation", requests)
        if len(replies) < len(requests):
            missing = len(requests) - len(replies)
            raise RuntimeError(f"round {server_round}: {missing} clients did not evaluate in time")
        for client in self._nodes:
            self._holdings.measured(client, model)
        by_client = {self._clients[reply.metadata.src_node_id]: reply for reply in replies}
        self._note_followers(self._nodes, by_client)
        return [self._measured(client, reply, views) for client, reply in sorted(by_client.items())]

    def _measured(self, client: int, reply: Message, views: Sequence[str]) -> tuple[int, Measured]:
        """Reads what one client measured."""
        if reply.has_error():
            raise RuntimeError(f"client {client} cannot evaluate: {first_line(reply.error.reason)}")
        try:
            metrics = messages.metrics_of(self._end.open(client, reply.content))
            return int(messages.scalar(metrics, messages.SAMPLES)), {
                view: (
                    messages.scalar(metrics, messages.ACCURACY_OF + view),
                    messages.scalar(metrics, messages.LOSS_OF + view),
                )
                for view in views
            }
        except ValueError as error:
            raise RuntimeError(f"client {client} cannot evaluate: {error}") from None

    def _pack(
        self,
        server_round: int,
        instructions: Sequence[Instruction],
        kind: str = MessageType.TRAIN,
        roster: Roster | None = None,
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
        return self._holdings.spared(asked.client, asked.model.tensors, asked.plan)

    def _note_followers(self, asked: Iterable[int], replies: Mapping[int, Message]) -> None:
        """Notes who has read what it was sent: all whose app answered."""
        for client in asked:
            if client in replies and not replies[client].has_error():
                self._end.answered(client)
            else:
                self._end.missed(client)

    def _read(
        self,
        replies: Mapping[int, Message],
        asked: Mapping[int, Instruction],
        roster: Roster | None,
    ) -> tuple[list[Update], dict[int, str]]:
        """Reads the replies of a round: updates sorted by client, and why others are none."""
        updates: list[Update] = []
        reasons: dict[int, str] = {}
        contents: dict[int, RecordDict] = {}
        for client, reply in sorted(replies.items()):
            if reply.has_error():
                reasons[client] = str(reply.error.reason)
                continue
            try:
                frozen = asked[client].plan.frozen
                contents[client] = self._end.open(client, reply.content, frozen)
            except ValueError as error:
                reasons[client] = str(error)
        if self._sums is not None and roster is not None:
            layout = self._layout.without(self._layout.ending_with(self._plan.frozen))
            summed, others = self._sums.add_up(roster, contents, layout, self._ask_for_seeds)
            return summed, reasons | others
        for client, content in contents.items():
            try:
                rank = rank_of(self._config, client)
                one = read_update(content, self._layout, asked[client], rank, len(self._nodes))
                updates.append(self._end.bounded(one, self._norm(asked[client])))
            except ValueError as error:
                reasons[client] = str(error)
        return updates, reasons

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
        replies = self._ask(roster.round, "revealing", requests)
        seeds = {}
        for reply in replies:
            with suppress(ValueError):  # who answers wrongly has dropped out as well
                if not reply.has_error():
                    client = self._clients[reply.metadata.src_node_id]
                    seeds[client] = masking.read_seeds(self._end.open(client, reply.content))
        return seeds

    def _ask(
        self, server_round: int, purpose: Purpose, requests: Sequence[Message]
    ) -> list[Message]:
        """Sends messages and gathers replies; all are counted, while others are still awaited."""
        return self._send(requests, lambda message: self._count(message, server_round, purpose))

    def _send(
        self, requests: Sequence[Message], note: Callable[[Message], None] = lambda message: None
    ) -> list[Message]:
        """Sends messages and gathers replies until all are there or time is up.

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
        while waiting and (looks := time.monotonic()) < deadline:
            self._heed_stop()
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
                self._stop.wait(min(seconds, deadline - now))
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
