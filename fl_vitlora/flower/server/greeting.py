"""The greeting: the server asks every node once which client runs on the node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import MessageType, RecordDict

from fl_vitlora.data.class_names import disagreement
from fl_vitlora.errors import UserError
from fl_vitlora.federation.client_records import ClientRecords
from fl_vitlora.federation.failures import first_line
from fl_vitlora.flower.server.posting import Post, Reply, Request
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.server.sending import ServerEnd
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import fold
from fl_vitlora.flower.wire.reported_counts import read_images


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """The numbers and names that one node states about itself.

    Attributes:
        client: The number of the client on this node.
        images: The number of the client's training images.
        names: The names of the client's classes, in the order of its labels.
    """

    client: int
    images: int
    names: tuple[str, ...]


def greet(
    clients: int,
    *,
    post: Post,
    records: ClientRecords,
    class_names: Sequence[str] | None,
    sums: SecureAggregator | None,
) -> dict[int, int]:
    """Waits for the nodes, and asks each node for its client number.

    While the server waits, the worker processes start.

    Args:
        clients: The number of nodes to wait for.
        post: Sends the messages.
        records: The server's records of the clients; this function adds a record for each client.
        class_names: The names of the run's classes; None if classes are not compared.
        sums: The secure aggregator, which stores the public keys; None without secure aggregation.

    Returns:
        A dictionary: for each client, the number of its training images.

    Raises:
        RuntimeError: If a node does not answer, or if two nodes have the same shard.
        UserError: If a client's classes, or their order, differ from those of the run.
    """
    question = fold(RecordDict(), {}, {})
    nodes = post.wait_for_nodes(clients)
    requests = [Request.to(node, MessageType.QUERY, question) for node in nodes]
    replies = post.send(requests, records)
    images: dict[int, int] = {}
    found: dict[int, int] = {}
    for reply in replies:
        greeting = _read(reply, sums)
        _compare_classes(greeting, class_names)
        if greeting.client in images:
            raise RuntimeError(
                f"two nodes hold the images of client {greeting.client}; expected one node"
            )
        images[greeting.client] = greeting.images
        found[greeting.client] = reply.node
    if len(images) < len(requests):
        raise RuntimeError(
            f"{len(requests) - len(images)} clients did not answer the server's first question in "
            "time"
        )
    for client in sorted(images):
        records.greeted(client, found[client], images[client])
    for request in requests:
        post.count(request, 0, "greeting", records)
    for reply in replies:
        post.count(reply, 0, "greeting", records)
    return dict(sorted(images.items()))


def _read(reply: Reply, sums: SecureAggregator | None) -> Greeting:
    """Reads a node's answer to the greeting; the secure aggregator gets the node's public key.

    Raises:
        RuntimeError: If the node's app cannot start, or if the reply lacks a number or a name.
    """
    if reply.message.has_error():
        reason = str(reply.message.error.reason)
        raise RuntimeError(f"a client cannot start: {first_line(reason)}")
    try:
        content = ServerEnd.open(reply.opened())
        metrics = messages.metrics_of(content)
        greeting = Greeting(
            client=messages.whole(metrics, messages.CLIENT),
            images=read_images(metrics),
            names=messages.class_names_of(content),
        )
        if sums is not None:
            sums.greeted(greeting.client, content)
    except ValueError as error:
        raise RuntimeError(
            f"a node sent an invalid answer to the server's first question: {error}"
        ) from None
    return greeting


def _compare_classes(greeting: Greeting, class_names: Sequence[str] | None) -> None:
    """Refuses a client whose labels mean other classes than the labels of the run.

    Raises:
        UserError: If the client's classes differ from those of the run.
    """
    if class_names is None:
        return
    if differs := disagreement(greeting.names, class_names):
        raise UserError(
            f"client {greeting.client} has other classes than this run: {differs}; start its node "
            "with the run's list of classes, --node-config 'classes=\"FILE\"'; labels are then "
            "matched by name"
        )
