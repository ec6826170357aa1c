"""Handing messages to workers at once, in bundles, and the same whatever the number of nodes.

Flower's simulation asks ten times a second for each registered node whether a message waits for it,
looks through all messages every time, and hands each to Ray by itself: a wait of up to 0.1 s in
every exchange, some milliseconds a message, and with ten thousand nodes a thread that does nothing
else. Here the messages are looked at, not the nodes; they are handed on in the order in which they
were sent, and several go to a worker in one call.
"""

from __future__ import annotations

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

LOOK_SECONDS = 0.01
LATE = "nobody waits for this reply any more"
WAIT_SECONDS = 1.0  # for a bundle, before it is looked whether there is to be another


def bundles(messages: Sequence[Message], most: Mapping[str, int]) -> list[list[Message]]:
    """Cuts messages into bundles of one kind and of nearly the same size.

    Who is in a bundle with whom depends on nothing but the messages and their order; so what is
    computed together, and its rounding, does not depend on the number of workers.

    Args:
        messages: In the order in which they were sent.
        most: In a bundle, by the kind of message; one of kinds that are not named.

    Returns:
        Them, in this order.
    """
    cut = []
    for kind, group in itertools.groupby(messages, key=kind_of):
        alike = list(group)
        count = math.ceil(len(alike) / most.get(kind, 1))
        ends = [len(alike) * number // count for number in range(count + 1)]
        cut += [alike[begin:end] for begin, end in itertools.pairwise(ends)]
    return cut


def kind_of(message: Message) -> str:
    """Tells whether a message asks a client to train, to evaluate or to answer a query."""
    return str(message.metadata.message_type.partition(".")[0])


def deliver(
    state: InMemoryLinkState,
    queue: Queue[list[Message]],
    nodes_mapping: Mapping[int, int],
    f_stop: threading.Event,
    most: Mapping[str, int],
) -> None:
    """Puts every message that waits into the queue of the workers, until it is stopped.

    It has the name and the arguments of what it stands in for, and one more.

    Args:
        state: Of the simulation.
        queue: Of the workers.
        nodes_mapping: The partition of each node; messages to others wait.
        f_stop: Is set at the end.
        most: Messages in a bundle, by their kind.
    """
    while not f_stop.is_set():
        for bundle in bundles(take(state, nodes_mapping), most):
            queue.put(bundle)
        f_stop.wait(LOOK_SECONDS)


def take(state: InMemoryLinkState, nodes: Mapping[int, int]) -> list[Message]:
    """Marks all messages that wait for one of the nodes as delivered.

    Returns:
        Them, in the order in which they were sent.
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


def work(  # noqa: PLR0917 - as many as Flower hands over
    messageins_queue: Queue[list[Message]],
    messageres_queue: Queue[Message],
    node_info_store: Mapping[int, Any],
    backend: KeptWorkers,
    f_stop: threading.Event,
    metrics: Any,
    states: ClientStates,
) -> None:
    """Has bundles answered, one after the other, until it is stopped.

    It has the arguments of Flower's `worker`, and one more.

    Args:
        messageins_queue: Bundles of messages to clients.
        messageres_queue: Takes their replies, or errors in place of them.
        node_info_store: What remembers the contexts of nodes.
        backend: That answers.
        f_stop: Is set at the end.
        metrics: Counts seconds.
        states: Of the clients.
    """
    while not f_stop.is_set():
        try:
            bundle = messageins_queue.get(timeout=WAIT_SECONDS)
        except Empty:
            continue
        begin = time.perf_counter()
        for reply in replies_to(bundle, node_info_store, backend, states):
            reply.metadata.__dict__["_message_id"] = str(uuid4())  # as Flower does
            messageres_queue.put(reply)
        metrics.add_clientapp_runtime(time.perf_counter() - begin)


def replies_to(
    bundle: Sequence[Message],
    nodes: Mapping[int, Any],
    backend: KeptWorkers,
    states: ClientStates,
) -> Iterator[Message]:
    """Has a bundle answered, and remembers the contexts that the clients leave.

    A reply that nobody waits for any more is void, and so is what its client would remember of it;
    where that is known beforehand, nobody works for it.

    Yields:
        A reply to each message, in which there is an error where the app, or the worker, failed, or
        where it came too late.
    """
    if all(is_late(message, states) for message in bundle):
        yield from (refused(message, TimeoutError(LATE)) for message in bundle)
        return
    run = bundle[0].metadata.run_id
    stores = [nodes[message.metadata.dst_node_id] for message in bundle]
    try:
        contexts = [states.lend(store.retrieve_context(run)) for store in stores]
        answers, apart = backend.answer(bundle, contexts)
    except Exception as error:  # Ray's, for which no client is to blame
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
        except ValueError as error:  # the app changed what it must not
            reply = refused(message, error)
        yield reply


def is_late(message: Message, states: ClientStates) -> bool:
    """Tells whether the server does not wait for the reply to a message any more."""
    return states.is_given_up(message.metadata.message_id)


def refused(message: Message, error: Exception) -> Message:
    """Makes the reply that tells of an error, with its trace."""
    if isinstance(error, AppError):  # whose text is the trace that the worker wrote
        told = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=str(error))
    else:
        told = Error(code=ErrorCode.UNKNOWN, reason=trace_of(error))
    return Message(told, reply_to=message)


@contextmanager
def prompt_delivery(most: Mapping[str, int], states: ClientStates) -> Iterator[None]:
    """Lets Flower, which names its delivery in the code, find this one in that place.

    Args:
        most: Messages in a bundle, by their kind.
        states: What the clients remember.
    """

    def add_messages_to_queue(state: Any, queue: Any, nodes_mapping: Any, f_stop: Any) -> None:
        deliver(state, queue, nodes_mapping, f_stop, most)

    def worker(  # noqa: PLR0917 - as many as Flower hands over
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
    theirs: dict[str, Callable[..., None]] = {name: getattr(vce_api, name) for name in ours}
    if not all(arguments(theirs[name]) == arguments(ours[name]) for name in ours):
        yield  # another version of Flower, which delivers in its own way
        return
    states.followed = True
    vars(vce_api).update(ours)
    try:
        yield
    finally:
        vars(vce_api).update(theirs)


def arguments(function: Callable[..., None]) -> list[str]:
    """Names the arguments of a function."""
    return list(inspect.signature(function).parameters)
