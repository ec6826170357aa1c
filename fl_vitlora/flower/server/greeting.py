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

    The worker processes start while the server waits.

    Args:
        clients: The number of nodes to wait for.
        post: The post, which sends the messages.
        records: The server's records of the clients; this function adds a record for each client.
        class_names: The names of the run's classes; None if classes are not compared.
        sums: The secure aggregator, which stores the public keys; None without secure aggregation.

    Returns:
        The number of training images of each client, by client.

    Raises:
        RuntimeError: If a node does not answer, or if two nodes have the same shard.
        UserError: If a client's classes, or their order, differ from the classes of the run.
    """
    question = fold(RecordDict(), {}, {})
    nodes = post.wait_for_nodes(clients)
    requests = [Request.to(node, MessageType.QUERY, question) for node in nodes]
    replies = post.send(requests, records)
    greetings = _read_all(replies, class_names, sums)
    if len(greetings) < len(requests):
        raise RuntimeError(
            f"{len(requests) - len(greetings)} clients did not answer the server's first question "
            "in time"
        )
    for client, (node, greeting) in greetings.items():
        records.greeted(client, node, greeting.images)
    for request in requests:
        post.count(request, 0, "greeting", records)
    for reply in replies:
        post.count(reply, 0, "greeting", records)
    return {client: greeting.images for client, (_, greeting) in greetings.items()}


def _read_all(
    replies: Sequence[Reply], class_names: Sequence[str] | None, sums: SecureAggregator | None
) -> dict[int, tuple[int, Greeting]]:
    """Reads the answers of all nodes, and checks that they are of different clients.

    Returns:
        The node and the greeting of each client, by client, in the order of the clients' numbers.

    Raises:
        RuntimeError: If an answer cannot be used, or if two nodes have the same shard.
        UserError: If a client's classes differ from the classes of the run.
    """
    found: dict[int, tuple[int, Greeting]] = {}
    for reply in replies:
        greeting = _read(reply, sums)
        _compare_classes(greeting, class_names)
        if greeting.client in found:
            raise RuntimeError(
                f"two nodes hold the images of client {greeting.client}; expected one node"
            )
        found[greeting.client] = (reply.node, greeting)
    return dict(sorted(found.items()))


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
        UserError: If the client's classes differ from the classes of the run.
    """
    if class_names is None:
        return
    if differs := disagreement(greeting.names, class_names):
        raise UserError(
            f"client {greeting.client} has other classes than this run: {differs}; start its node "
            "with the run's list of classes, --node-config 'classes=\"FILE\"'; labels are then "
            "matched by name"
        )
