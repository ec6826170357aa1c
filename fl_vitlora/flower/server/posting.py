"""The post: sends messages through Flower's grid, gathers the replies, and counts the messages.

The grid is Flower's connection from the server to the nodes. When a reply arrives, its buffer is
split into records and its bytes are counted. The tensors in the reply are decoded later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_vitlora.communication.ledger import Direction, Entry, Ledger, Purpose
from fl_vitlora.federation.client_records import ClientRecords
from fl_vitlora.federation.polling import pause
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.wire.byte_counts import overhead_of
from fl_vitlora.flower.wire.folding import Unfolded, unfold

NODE_POLL_SECONDS = 0.05
MOST_AWAITED = 500  # while replies arrive, the grid is asked for at most this number of replies
DOWNLINK: Direction = "downlink"
UPLINK: Direction = "uplink"

Tap = Callable[[Message], None]
Groups = Mapping[str, int]  # the number of bytes of coded tensors, by group of tensors


@dataclass(frozen=True, kw_only=True)
class Request:
    """A message to one node.

    Attributes:
        message: The message as it is sent.
        groups: The number of bytes of the coded tensors in the message, by group of tensors.
    """

    message: Message
    groups: Groups = field(default_factory=dict)

    @classmethod
    def to(cls, node: int, kind: str, content: RecordDict, groups: Groups | None = None) -> Request:
        """Makes the request that sends records to a node.

        Args:
            node: The number of the node.
            kind: The type of the message, as Flower names it.
            content: The records, written into one buffer by `fold`.
            groups: The number of bytes of the coded tensors in the message, by group of tensors.
        """
        message = Message(content, dst_node_id=node, message_type=kind)
        return cls(message=message, groups=groups or {})


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A message from one node.

    Attributes:
        message: The message as it was received.
        node: The number of the node that sent the message.
        unfolded: The records of the message; an error if the records cannot be read; None if the
            message reports an error.
        groups: The number of bytes of the coded tensors in the message, by group of tensors; empty
            if the message cannot be read.
    """

    message: Message
    node: int
    unfolded: Unfolded | ValueError | None
    groups: Groups

    @classmethod
    def of(cls, message: Message) -> Reply:
        """Reads the records of a received message."""
        node = message.metadata.src_node_id
        if not message.has_content():
            return cls(message=message, node=node, unfolded=None, groups={})
        try:
            found = unfold(message.content)
        except ValueError as error:
            return cls(message=message, node=node, unfolded=error, groups={})
        return cls(message=message, node=node, unfolded=found, groups=found.groups)

    def opened(self) -> Unfolded:
        """Returns the records of the reply.

        Raises:
            ValueError: If the reply cannot be read.
        """
        if isinstance(self.unfolded, Unfolded):
            return self.unfolded
        raise self.unfolded or ValueError(
            "message refused: it reports an error instead of a result"
        )


@dataclass(frozen=True, kw_only=True)
class Post:
    """Sends messages to nodes and gathers their replies.

    Attributes:
        grid: Flower's grid, which carries messages between the server and the nodes.
        ledger: The ledger in which messages are counted.
        timeout: Seconds to wait for the replies to one batch of messages.
        states: The memory of simulated clients. The post notes in it for which replies it no longer
            waits. The server reads in it which clients were trained one by one after their bundle
            had failed.
        tap: A function that is called with every message, for inspection; None for no inspection.
        stop: An event; when it is set, the post stops waiting and raises an error.
    """

    grid: Grid
    ledger: Ledger
    timeout: float
    states: ClientStates = field(default_factory=ClientStates)
    tap: Tap | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def wait_for_nodes(self, clients: int) -> list[int]:
        """Waits until enough nodes have joined, and returns their numbers.

        Raises:
            RuntimeError: If too few nodes join in time.
        """
        deadline = time.monotonic() + self.timeout
        while len(nodes := list(self.grid.get_node_ids())) < clients:
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"only {len(nodes)} of {clients} nodes joined within {self.timeout:g} s"
                )
            self._heed_stop()
            time.sleep(NODE_POLL_SECONDS)
        return nodes

    def counted(
        self,
        server_round: int,
        purpose: Purpose,
        requests: Sequence[Request],
        records: ClientRecords,
    ) -> list[Reply]:
        """Sends messages, gathers the replies, and counts the bytes of messages and replies."""
        return self.send(
            requests, records, lambda one: self.count(one, server_round, purpose, records)
        )

    def send(
        self,
        requests: Sequence[Request],
        records: ClientRecords,
        note: Callable[[Request | Reply], None] = lambda one: None,
    ) -> list[Reply]:
        """Sends messages and gathers replies until all have arrived or time is up.

        Replies that arrive later are dropped, and the stored memory of their clients does not
        change. Messages to the clients with the most images are sent first, so that the last
        clients need the least time.

        Args:
            requests: The messages, each to one node.
            records: The records of all clients.
            note: A function that is called with every request and every reply.
        """

        def images(request: Request) -> int:
            return records.images_of(records.client_at(request.message.metadata.dst_node_id))

        order = sorted(requests, key=images, reverse=True)
        ids = self.grid.push_messages([request.message for request in order])
        waiting = dict(zip(ids, map(images, order), strict=False))
        for request in order:
            note(request)
        replies = self._gather(waiting, note)
        self.states.give_up(waiting)
        return replies

    def _gather(
        self, waiting: dict[str, int], note: Callable[[Request | Reply], None]
    ) -> list[Reply]:
        """Gathers the replies to messages, and removes the ids of these messages from `waiting`.

        Args:
            waiting: The number of images of the client that was asked, by id of the message.
            note: A function that is called with every reply.
        """
        replies: list[Reply] = []
        answered, awaited = 0, sum(waiting.values())
        begin = last = looks = time.monotonic()
        deadline, arrived = begin + self.timeout, False
        while waiting and looks <= deadline:  # the last look comes after the deadline
            self._heed_stop()
            looks = time.monotonic()
            wanted = set(islice(waiting, MOST_AWAITED if arrived else None))
            found = [Reply.of(message) for message in self.grid.pull_messages(wanted)]
            arrived = bool(found)
            for reply in found:
                note(reply)
                images = waiting.pop(reply.message.metadata.reply_to_message_id, 0)
                answered, awaited, last = answered + images, awaited - images, looks
            replies += found
            if waiting:
                now = time.monotonic()
                spent, looked = now - begin, now - looks
                seconds = pause(
                    spent, looked, last=last - begin, answered=answered, awaited=awaited
                )
                self.stop.wait(max(0.0, min(seconds, deadline - now)))
        return replies

    def count(
        self, one: Request | Reply, server_round: int, purpose: Purpose, records: ClientRecords
    ) -> None:
        """Counts the bytes of a message in the ledger, and passes the message to `tap`."""
        message = one.message
        down = isinstance(one, Request)
        node = message.metadata.dst_node_id if down else message.metadata.src_node_id
        self.ledger.record(
            Entry(
                round=server_round,
                purpose=purpose,
                client=records.client_at(node),
                direction=DOWNLINK if down else UPLINK,
                groups=dict(one.groups),
                overhead=overhead_of(message, one.groups),
            )
        )
        if self.tap is not None:
            self.tap(message)

    def _heed_stop(self) -> None:
        if self.stop.is_set():
            raise InterruptedError("the run was stopped")
