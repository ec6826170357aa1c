"""How messages get to workers: in the order in which they were sent, each once."""

from __future__ import annotations

import importlib.metadata
import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.server.superlink.fleet.vce import vce_api
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.delivery import (
    REPLACED,
    bundles,
    deliver,
    prompt_delivery,
    replies_to,
    take,
    why_not_followed,
)
from tests.waiting import WATCHDOG


def message(name: str, node: int, kind: str = "train") -> Any:
    metadata = SimpleNamespace(dst_node_id=node, delivered_at="", message_type=kind)
    return SimpleNamespace(name=name, metadata=metadata)


def state_of(*messages: Any) -> Any:
    store = {one.name: one for one in messages}
    return SimpleNamespace(lock=threading.RLock(), message_ins_store=store)


def names(messages: Any) -> list[str]:
    return [one.name for one in messages]


def test_messages_are_taken_in_the_order_they_were_sent_and_once():
    state = state_of(message("c", 3), message("a", 1), message("b", 2))
    assert names(take(state, {1: 0, 2: 1, 3: 2})) == ["c", "a", "b"]
    assert take(state, {1: 0, 2: 1, 3: 2}) == []


def test_messages_to_others_wait():
    state = state_of(message("a", 1), message("server's", 9))
    assert names(take(state, {1: 0})) == ["a"]
    assert names(take(state, {9: 0})) == ["server's"]


def test_delivery_goes_on_until_it_is_stopped():
    state, queue = state_of(message("a", 1)), Queue[Any]()
    stop, pushed = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=deliver, args=(state, queue, {1: 0}, stop), kwargs={"most": {}, "pushed": pushed}
    )
    thread.start()
    assert names(queue.get(timeout=WATCHDOG)) == ["a"]
    for name in ("b", "c"):  # the first without an announcement
        with state.lock:
            state.message_ins_store[name] = message(name, 1)
        if name == "c":
            pushed.set()
        assert names(queue.get(timeout=WATCHDOG)) == [name]
    stop.set()
    thread.join(timeout=WATCHDOG)
    assert not thread.is_alive()
    assert queue.empty()


@given(count=st.integers(0, 60), most=st.integers(1, 20))
def test_bundles_are_nearly_of_one_size_and_keep_the_order(count: int, most: int) -> None:
    sent = [message(str(number), number) for number in range(count)]
    cut = bundles(sent, {"train": most})
    assert [one for bundle in cut for one in bundle] == sent
    assert len(cut) == -(-count // most)
    assert max(map(len, cut), default=0) - min(map(len, cut), default=0) <= 1


def test_messages_of_different_kinds_do_not_go_together():
    kinds = ["query", "query.reveal", "train", "train", "evaluate", "evaluate", "train"]
    sent = [message(str(number), number, kind) for number, kind in enumerate(kinds)]
    cut = bundles(sent, {"query": 9, "train": 9})
    assert [names(bundle) for bundle in cut] == [["0", "1"], ["2", "3"], ["4"], ["5"], ["6"]]


class Node:
    """The store of a node's context."""

    def __init__(self, client: int) -> None:
        self.context = Context(1, client, {"partition-id": client}, RecordDict(), {})

    def retrieve_context(self, run: int) -> Context:
        return self.context

    def update_context(self, run: int, context: Context) -> None:
        self.context = context


def to(client: int, number: int) -> Message:
    sent = Message(RecordDict(), dst_node_id=client, message_type="train")
    sent.metadata.__dict__["_message_id"] = f"message {number}"
    return sent


def remembering(context: Context, number: int) -> Context:
    """The context that a worker sends back: a copy of what it was lent, with a new record."""
    state = RecordDict({**context.state, "last": ConfigRecord({"number": number})})
    return Context(context.run_id, context.node_id, context.node_config, state, {})


class Slow:
    """Answers each message, and lets something happen meanwhile."""

    def __init__(self, number: int, meanwhile: Any = lambda: None) -> None:
        self.number, self.meanwhile, self.asked, self.apart = number, meanwhile, 0, False

    def answer(self, messages: Any, contexts: Any) -> Any:
        self.asked += 1
        kept = [remembering(context, self.number) for context in contexts]
        self.meanwhile()
        replies = [Message(RecordDict(), reply_to=message) for message in messages]
        return list(zip(replies, kept, strict=True)), self.apart


def test_a_late_reply_is_void_and_puts_no_old_state_over_a_newer_one() -> None:
    """While a worker is at the first message, the server gives it up and has the next answered."""
    nodes, states = {3: Node(3)}, ClientStates()
    numbers = []

    def ask(backend: Slow) -> list[Message]:
        replies = list(replies_to([to(3, backend.number)], nodes, backend, states))  # type: ignore[arg-type]
        numbers.append(states.now()[3]["last"]["number"])
        assert nodes[3].context.state == states.now()[3]
        return replies

    def meanwhile() -> None:
        states.give_up(["message 1"])
        (reply,) = ask(Slow(2))
        assert not reply.has_error()

    (late,) = ask(Slow(1, meanwhile))
    assert "server no longer waits" in str(late.error.reason)
    assert numbers == [2, 2]


def test_nobody_works_for_messages_that_are_given_up() -> None:
    states, backend = ClientStates(), Slow(1)
    states.give_up(["message 1", "message 2"])
    bundle = [to(3, 1), to(4, 2)]
    replies = list(replies_to(bundle, {3: Node(3), 4: Node(4)}, backend, states))  # type: ignore[arg-type]
    assert [reply.has_error() for reply in replies] == [True, True]
    assert backend.asked == 0
    assert states.now() == {}


def test_who_was_taken_out_of_its_bundle_is_told() -> None:
    nodes, states, backend = {3: Node(3), 4: Node(4)}, ClientStates(), Slow(1)
    for number, backend.apart in enumerate([False, True]):
        list(replies_to([to(3, number), to(4, number)], nodes, backend, states))  # type: ignore[arg-type]
        assert states.is_taken_apart(f"message {number}") == backend.apart


def current() -> tuple[Any, Any]:
    return vce_api.add_messages_to_queue, vce_api.worker


def test_the_installed_flower_delivers_as_is_told_here_and_is_left_as_it_was():
    theirs = current()
    with prompt_delivery({}, ClientStates(), threading.Event()):
        assert current()[1] is not theirs[1]
        assert current()[0] is not theirs[0]
    assert current() == theirs


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("lacks", [True, False])
def test_a_flower_that_asks_for_something_else_delivers_in_its_own_way_and_the_user_is_told(
    name: str, lacks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(state: object, queue: object) -> None:
        raise NotImplementedError

    assert not why_not_followed()
    if lacks:
        monkeypatch.delattr(vce_api, name)
    else:
        monkeypatch.setattr(vce_api, name, another)
    theirs, states = dict(vars(vce_api)), ClientStates()
    with prompt_delivery({}, states, threading.Event()):
        assert vars(vce_api) == theirs
    assert not states.followed
    told = why_not_followed()
    assert told.startswith(f"Flower {importlib.metadata.version('flwr')} ")
    assert told.endswith("the run has no checkpoints and cannot be resumed")
