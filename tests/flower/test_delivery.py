"""How messages get to workers: in the order in which they were sent, each once."""

from __future__ import annotations

import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

from flwr.server.superlink.fleet.vce import vce_api

from fl_vitlora.flower.delivery import deliver, prompt_delivery, take


def message(name: str, node: int) -> Any:
    return SimpleNamespace(name=name, metadata=SimpleNamespace(dst_node_id=node, delivered_at=""))


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
    state, queue, stop = state_of(message("a", 1)), Queue[Any](), threading.Event()
    thread = threading.Thread(target=deliver, args=(state, queue, {1: 0}, stop))
    thread.start()
    assert queue.get(timeout=10).name == "a"
    with state.lock:
        state.message_ins_store["b"] = message("b", 1)
    assert queue.get(timeout=10).name == "b"
    stop.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert queue.empty()


def current() -> Any:
    return vce_api.add_messages_to_queue


def test_the_installed_flower_delivers_as_is_told_here_and_is_left_as_it_was():
    theirs = current()
    with prompt_delivery():
        assert current() is deliver
    assert current() is theirs


def test_a_flower_that_asks_for_something_else_delivers_in_its_own_way(monkeypatch):
    def another(state: object, queue: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(vce_api, "add_messages_to_queue", another)
    with prompt_delivery():
        assert current() is another
