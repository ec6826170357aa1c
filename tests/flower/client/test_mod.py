"""A client's end of the wire leaves room for other mods: what they read and change counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.state_record import StateRecord
from fl_vitlora.state import State, scale
from tests.flower.client.test_context_state import Clients, equal


def clients_with(folder: Path, *mods: Mod) -> Clients:
    """Three clients whose app has these mods between the wire and its functions."""
    clients = Clients(folder)
    clients.grid.app = make_client_app(lambda context: clients.settings, mods)
    return clients


def doubled(content: RecordDict, layout: Layout, *, replaces: bool) -> None:
    """Doubles the tensors of a message, in a new record or in the one that is there."""
    changed = messages.to_packed(scale(messages.from_packed(content, layout), 2.0))
    if replaces:
        content[messages.ARRAYS] = changed
    else:
        content.array_records[messages.ARRAYS][messages.PACKED] = changed[messages.PACKED]


def first_update(clients: Clients, model: State) -> State:
    (update,) = clients.train(1, model, 0)
    assert clients.failures == []
    return update.delta


def test_a_mod_that_looks_at_everything_changes_nothing(tmp_path: Path):
    seen: list[list[str]] = []

    def looks(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        seen.append([str(record) for record in message.content.values()])
        reply = call_next(message, context)
        seen.append([str(record) for record in reply.content.values()])
        return reply

    looked = clients_with(tmp_path / "looked", looks)
    plain = Clients(tmp_path / "plain")
    assert equal(first_update(looked, looked.initial), first_update(plain, plain.initial))
    assert [any(messages.PACKED in text for text in texts) for texts in seen] == [True, True]


@pytest.mark.parametrize("replaces", [True, False])
def test_a_client_trains_on_what_a_mod_made_of_the_model(tmp_path: Path, *, replaces: bool):
    def doubles(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if messages.ARRAYS in message.content:
            doubled(message.content, Layout.of(plain.initial), replaces=replaces)
        return call_next(message, context)

    plain = Clients(tmp_path / "plain")
    meddled = clients_with(tmp_path / "meddled", doubles)
    expected = first_update(plain, scale(plain.initial, 2.0))
    assert equal(first_update(meddled, meddled.initial), expected)


@pytest.mark.parametrize("replaces", [True, False])
def test_the_server_gets_what_a_mod_made_of_the_update(tmp_path: Path, *, replaces: bool):
    def doubles(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        if messages.ARRAYS in reply.content:
            doubled(reply.content, Layout.of(plain.initial), replaces=replaces)
        return reply

    plain = Clients(tmp_path / "plain")
    meddled = clients_with(tmp_path / "meddled", doubles)
    expected = scale(first_update(plain, plain.initial), 2.0)
    assert equal(first_update(meddled, meddled.initial), expected)
    assert all(torch.isfinite(tensor).all() for tensor in expected.values())


def test_a_mod_that_puts_other_tensors_into_a_message_is_refused(tmp_path: Path):
    def spoils(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if messages.ARRAYS in message.content:
            message.content[messages.ARRAYS] = messages.to_packed({"w": torch.zeros(2)})
        return call_next(message, context)

    clients = clients_with(tmp_path, spoils)
    assert clients.train(1, clients.initial, 0) == []
    assert "same model" in clients.failures[0].reason


def test_nothing_is_packed_for_a_mod_that_does_not_look(tmp_path: Path):
    """A round trip codes every tensor once and decodes it once; between, it stays as it is."""
    kinds: list[type] = []

    def passes(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        kinds.extend(type(one.content.get(messages.ARRAYS)) for one in (message, reply))
        return reply

    clients = clients_with(tmp_path, passes)
    first_update(clients, clients.initial)
    assert kinds == [StateRecord, StateRecord]
