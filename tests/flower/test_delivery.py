"""How messages get to workers: in the order in which they were sent, each once."""

from __future__ import annotations

import threading
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.server.superlink.fleet.vce import vce_api
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.flower.client_states import ClientStates
from fl_vitlora.flower.delivery import bundles, deliver, prompt_delivery, take


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
    state, queue, stop = state_of(message("a", 1)), Queue[Any](), threading.Event()
    thread = threading.Thread(target=deliver, args=(state, queue, {1: 0}, stop, {}))
    thread.start()
    assert names(queue.get(timeout=10)) == ["a"]
    with state.lock:
        state.message_ins_store["b"] = message("b", 1)
    assert names(queue.get(timeout=10)) == ["b"]
    stop.set()
    thread.join(timeout=10)
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


def current() -> tuple[Any, Any]:
    return vce_api.add_messages_to_queue, vce_api.worker


def test_the_installed_flower_delivers_as_is_told_here_and_is_left_as_it_was():
    theirs = current()
    with prompt_delivery({}, ClientStates()):
        assert current()[1] is not theirs[1]
        assert current()[0] is not theirs[0]
    assert current() == theirs


@pytest.mark.parametrize("name", ["add_messages_to_queue", "worker"])
def test_a_flower_that_asks_for_something_else_delivers_in_its_own_way(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(state: object, queue: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(vce_api, name, another)
    theirs = current()
    with prompt_delivery({}, ClientStates()):
        assert current() == theirs
