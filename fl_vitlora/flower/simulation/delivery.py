"""Delivers messages to workers at once and in bundles; nodes without a message cost no time.

Ten times a second, Flower's simulation checks for each registered node whether a message waits for
the node. Each check looks through all messages, and every message is given to Ray separately. These
checks cost up to 0.1 s in every exchange and some milliseconds per message. With ten thousand nodes
the checks keep a whole thread busy. This module looks through the waiting messages instead of
through the nodes, and delivers messages in the order in which they were sent, several of them in
one call.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.linkstate import InMemoryLinkState
from flwr.supercore.date import now

from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.backend import KeptWorkers
from fl_vitlora.flower.simulation.worker import AppError, trace_of

LOOK_SECONDS = 0.1  # messages that nobody announced are found in this interval
LATE = "the server no longer waits for this reply"
REPLACED: Mapping[str, Sequence[str]] = {  # functions of Flower with their arguments
    "add_messages_to_queue": ["state", "queue", "nodes_mapping", "f_stop"],
    "worker": [
        "messageins_queue",
        "messageres_queue",
        "node_info_store",
        "backend",
        "f_stop",
        "metrics",
    ],
}
WAIT_SECONDS = 1.0  # an idle thread checks in this interval whether the simulation has ended


def bundles(messages: Sequence[Message], most: Mapping[str, int]) -> list[list[Message]]:
    """Divides messages into bundles of one kind and nearly equal size; a worker gets one bundle.

    The bundles depend only on the messages and their order. Therefore the number of workers does
    not change which clients are trained together, or how the sums over clients are rounded.

    Args:
        messages: The messages in the order in which they were sent.
        most: Largest number of messages in a bundle, by kind of message; 1 for kinds not listed.

    Returns:
        The bundles, in the order of the messages.
    """
    cut = []
    for kind, group in itertools.groupby(messages, key=kind_of):
        alike = list(group)
        count = math.ceil(len(alike) / most.get(kind, 1))
        ends = [len(alike) * number // count for number in range(count + 1)]
        cut += [alike[begin:end] for begin, end in itertools.pairwise(ends)]
    return cut


def kind_of(message: Message) -> str:
    """Returns the kind of a message: "train", "evaluate" or "query"."""
    return str(message.metadata.message_type.partition(".")[0])


def deliver(
    state: InMemoryLinkState,
    queue: Queue[list[Message]],
    nodes_mapping: Mapping[int, int],
    f_stop: threading.Event,
    *,
    most: Mapping[str, int],
    pushed: threading.Event,
) -> None:
    """Puts every waiting message into the queue of the workers, until `f_stop` is set.

    This function replaces Flower's function `add_messages_to_queue`, which has only the first four
    arguments.

    Args:
        state: Flower's state of the simulation.
        queue: Queue of bundles for the workers.
        nodes_mapping: Partition (client number) of each node. A message to a node that is not in
            the mapping stays waiting.
        f_stop: Event that is set at the end of the simulation.
        most: Largest number of messages in a bundle, by kind of message.
        pushed: Event that the server sets after it has sent messages, so that they leave at once.
    """
    while not f_stop.is_set():
        pushed.clear()  # before the look, so that no message is overlooked
        for bundle in bundles(take(state, nodes_mapping), most):
            queue.put(bundle)
        pushed.wait(LOOK_SECONDS)


def take(state: InMemoryLinkState, nodes: Mapping[int, int]) -> list[Message]:
    """Marks all waiting messages to the given nodes as delivered, and returns these messages.

    Returns:
        The messages, in the order in which they were sent.
    """
    with state.lock:
        waiting = [
            message
            for message in state.message_ins_store.values()
            if not message.metadata.delivered_at and message.metadata.dst_node_id in nodes
        ]
        for message in waiting:
            message.metadata.delivered_at = now().isoformat()
    return waiting


def work(  # noqa: PLR0917 - the arguments that Flower passes
    messageins_queue: Queue[list[Message]],
    messageres_queue: Queue[Message],
    node_info_store: Mapping[int, Any],
    backend: KeptWorkers,
    f_stop: threading.Event,
    metrics: Any,
    states: ClientStates,
) -> None:
    """Lets the backend answer one bundle of messages after the other, until `f_stop` is set.

    This function replaces Flower's function `worker`, which has all arguments except the last.

    Args:
        messageins_queue: Queue of bundles of messages to clients.
        messageres_queue: Queue of the replies; a failed message has an error as its reply.
        node_info_store: For each node, Flower's store of the node's context.
        backend: The backend that answers messages.
        f_stop: Event that is set at the end of the simulation.
        metrics: Flower's counter of the seconds spent in client apps.
        states: The stored states of the clients.
    """
    while not f_stop.is_set():
        try:
            bundle = messageins_queue.get(timeout=WAIT_SECONDS)
        except Empty:
            continue
        begin = time.perf_counter()
        for reply in replies_to(bundle, node_info_store, backend, states):
            reply.metadata.__dict__["_message_id"] = str(uuid4())  # Flower does the same
            messageres_queue.put(reply)
        metrics.add_clientapp_runtime(time.perf_counter() - begin)


def replies_to(
    bundle: Sequence[Message],
    nodes: Mapping[int, Any],
    backend: KeptWorkers,
    states: ClientStates,
) -> Iterator[Message]:
    """Lets the backend answer a bundle of messages, and stores the clients' new contexts.

    If the server no longer waits for a reply, the reply is dropped and the client's stored context
    does not change. If the server waits for no reply of a bundle, the bundle is not computed.

    Args:
        bundle: The messages that one worker answers together.
        nodes: For each node, Flower's store of the node's context.
        backend: The backend that answers messages.
        states: The stored states of the clients.

    Yields:
        A reply to each message. The reply contains an error if the app or the worker failed, or if
        the answer came too late.
    """
    if all(is_late(message, states) for message in bundle):
        yield from (refused(message, TimeoutError(LATE)) for message in bundle)
        return
    run = bundle[0].metadata.run_id
    stores = [nodes[message.metadata.dst_node_id] for message in bundle]
    try:
        contexts = [states.lend(store.retrieve_context(run)) for store in stores]
        answers, apart = backend.answer(bundle, contexts)
    except Exception as error:  # an error of Ray, which no client has caused
        answers, apart = [error] * len(bundle), False
    if apart:
        states.take_apart(message.metadata.message_id for message in bundle)
    for message, store, answer in zip(bundle, stores, answers, strict=True):
        if isinstance(answer, Exception):
            yield refused(message, answer)
            continue
        if is_late(message, states):
            yield refused(message, TimeoutError(LATE))
            continue
        reply, context = answer
        try:
            store.update_context(run, context)
            states.note(context)
        except ValueError as error:  # the app changed a part of its context that it must not change
            reply = refused(message, error)
        yield reply


def is_late(message: Message, states: ClientStates) -> bool:
    """Returns True if the server no longer waits for the reply to a message."""
    return states.is_given_up(message.metadata.message_id)


def refused(message: Message, error: Exception) -> Message:
    """Returns a reply that reports an error with its stack trace."""
    if isinstance(error, AppError):  # the text of the error is the worker's stack trace
        content = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(error))
    else:
        content = Error(code=ErrorCode.UNKNOWN, reason=trace_of(error))
    return Message(content, reply_to=message)


def why_not_followed() -> str:
    """Returns a sentence for the user if the delivery of the installed Flower cannot be replaced.

    The clients' states then stay in Flower, and a checkpoint would lack them.

    Returns:
        The sentence; empty if the delivery can be replaced.
    """
    if all(arguments(getattr(vce_api, name, None)) == REPLACED[name] for name in REPLACED):
        return ""
    return (
        f"Flower {importlib.metadata.version('flwr')} delivers messages in a way that this program "
        "does not know, so the run has no checkpoints and cannot be resumed"
    )


@contextmanager
def prompt_delivery(
    most: Mapping[str, int], states: ClientStates, pushed: threading.Event
) -> Iterator[None]:
    """Replaces Flower's delivery of messages by the functions of this module inside the block.

    Flower has no option for another delivery, so the functions are replaced inside Flower's module.
    If the functions of a version of Flower have other arguments, nothing is replaced, and the run
    has no checkpoints (`why_not_followed`).

    Args:
        most: Largest number of messages in a bundle, by kind of message.
        states: The stored states of the clients.
        pushed: Event that the server sets after it has sent messages.
    """

    def add_messages_to_queue(state: Any, queue: Any, nodes_mapping: Any, f_stop: Any) -> None:
        deliver(state, queue, nodes_mapping, f_stop, most=most, pushed=pushed)

    def worker(  # noqa: PLR0917 - the arguments that Flower passes
        messageins_queue: Any,
        messageres_queue: Any,
        node_info_store: Any,
        backend: Any,
        f_stop: Any,
        metrics: Any,
    ) -> None:
        work(messageins_queue, messageres_queue, node_info_store, backend, f_stop, metrics, states)

    ours: dict[str, Callable[..., None]] = {
        "add_messages_to_queue": add_messages_to_queue,
        "worker": worker,
    }
    if why_not_followed():
        yield  # this version of Flower has other functions: leave its delivery in place
        return
    theirs: dict[str, Callable[..., None]] = {name: getattr(vce_api, name) for name in ours}
    states.followed = True
    vars(vce_api).update(ours)
    try:
        yield
    finally:
        vars(vce_api).update(theirs)


def arguments(function: Callable[..., None] | None) -> list[str]:
    """Returns the names of a function's arguments; an empty list without a function."""
    return [] if function is None else list(inspect.signature(function).parameters)
