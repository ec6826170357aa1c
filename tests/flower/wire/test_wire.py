"""Both ends of the wire around the real client app: what is coded, withheld, followed and lost."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

import strategies
from fl_vitlora.communication.groups import group_of
from fl_vitlora.communication.lanes import EXACT
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Part, Section
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.flower.client import context_state
from fl_vitlora.flower.client.mod import ClientEnd
from fl_vitlora.flower.strategies.aggregators import client_half, make_aggregator
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import unfold
from fl_vitlora.flower.wire.layouts import merged_layout, pairs_of
from fl_vitlora.lowrank import A, B
from fl_vitlora.state import State, add, l2_norm, scale, subtract
from fl_vitlora.strategy import Update
from tests.flower.client.test_context_state import Clients, equal, moved
from tests.flower.conftest import both
from tests.flower.played import FLOWER

LOSSY: dict[str, Any] = {"compression__uplink": "int4", "compression__downlink": "int4"}


def withheld(clients: Clients, client: int) -> State:
    layout = Layout.of(clients.initial)
    return context_state.withheld(clients.context(client), messages.ARRAYS, layout, None)


def held(clients: Clients, client: int, version: int) -> State:
    layout = Layout.of(clients.initial)
    return context_state.held(clients.context(client), messages.ARRAYS, version, layout)


def away(clients: Clients, factor: float = 1.01) -> State:
    return scale(clients.initial, factor)


def close(a: State, b: State) -> bool:
    return l2_norm(subtract(a, b)) <= 1e-6 * l2_norm(b)


def last_groups(clients: Clients, client: int) -> dict[str, int]:
    (sent,) = (m for m in clients.grid.sent if m.metadata.dst_node_id == 100 + client)
    return unfold(sent.content).groups


def test_an_update_and_what_was_withheld_of_it_are_the_whole_change(tmp_path: Path):
    coded, exact = Clients(tmp_path / "coded", **LOSSY), Clients(tmp_path / "exact")
    given, expected = coded.train(1, coded.initial), exact.train(1, exact.initial)
    for update, whole in zip(given, expected, strict=True):
        assert not equal(update.delta, whole.delta)
        assert close(add(update.delta, withheld(coded, update.client)), whole.delta)


def test_exact_lanes_leave_no_trace(tmp_path: Path):
    clients = Clients(tmp_path)
    clients.train(1, away(clients))
    assert not any(
        record.startswith((context_state.HELD, context_state.WITHHELD))
        for record in clients.context(0).state
    )


def test_coded_messages_are_a_fraction_of_exact_ones(tmp_path: Path):
    coded, exact = Clients(tmp_path / "coded", **LOSSY), Clients(tmp_path / "exact")
    for clients in (coded, exact):
        clients.train(1, away(clients))
    assert 7 * coded.ledger.total(server_round=1) < exact.ledger.total(server_round=1)


def test_who_takes_part_in_every_round_holds_what_the_server_sent_to_all(tmp_path: Path):
    clients = Clients(tmp_path, **LOSSY)
    for server_round in (1, 2, 3):
        clients.train(server_round, away(clients, 1 + server_round / 10))
        assert clients.failures == []
        values = [held(clients, client, server_round) for client in range(3)]
        assert equal(values[0], values[1])
        assert equal(values[0], values[2])
        error = subtract(values[0], away(clients, 1 + server_round / 10))
        assert l2_norm(error) < 0.02 * l2_norm(clients.initial)


def test_who_sat_out_is_sent_the_changes_that_it_missed(tmp_path: Path):
    clients = Clients(tmp_path, **LOSSY)
    sizes = []
    for server_round, participants in enumerate(((0, 1), (0,), (0,), (0, 1)), start=1):
        clients.train(server_round, away(clients, 1 + server_round / 10), *participants)
        assert clients.failures == []
        sizes.append(sum(last_groups(clients, 0).values()))
    assert equal(held(clients, 0, 4), held(clients, 1, 4))
    assert sum(last_groups(clients, 1).values()) == sum(sizes[1:])


def test_a_newcomer_is_sent_no_more_than_the_whole(tmp_path: Path):
    clients = Clients(tmp_path, compression__uplink="int4", compression__downlink="float16")
    for server_round in range(1, 5):
        clients.train(server_round, away(clients, 1 + server_round / 10), 0)
    clients.train(5, away(clients, 1.5), 0, 1)
    assert clients.failures == []
    assert equal(held(clients, 0, 5), held(clients, 1, 5))
    now = held(clients, 1, 5)
    moved = [n for n, first in clients.initial.items() if not torch.equal(first, now[n])]
    assert 0 < len(moved) < len(now)  # what never moved is known to a newcomer
    assert sum(last_groups(clients, 1).values()) == 4 * sum(now[n].numel() for n in moved)


@pytest.mark.parametrize("fails", ["silent", "raises"])
def test_of_a_lost_reply_nothing_is_left(fails: str, tmp_path: Path):
    """What was withheld before stays owed; the client begins anew with what it is sent."""
    clients = Clients(tmp_path, **LOSSY)
    clients.train(1, away(clients), 0)
    owed = withheld(clients, 0)
    if fails == "silent":  # it trained, and its reply did not arrive
        clients.grid.deaf = True
        clients.train(2, away(clients, 1.1), 0)
        clients.grid.deaf = False
        assert not equal(withheld(clients, 0), owed)
    else:
        clients.train(2, away(clients, 1.1), 0, rate=float("nan"))
    assert [failure.client for failure in clients.failures] == [0]
    (update,) = clients.train(3, away(clients, 1.2), 0)
    sent, _, versions = unfold(clients.grid.sent[0].content)
    assert versions == {messages.ARRAYS: (0, 3)}
    assert sent.config_records[messages.CONFIG][messages.TAKEN] == 1
    start = held(clients, 0, 3)
    fresh = Clients(tmp_path / "fresh")
    (whole,) = fresh.train(3, start, 0)
    assert close(add(update.delta, withheld(clients, 0)), add(whole.delta, owed))


def test_a_client_that_holds_another_version_refuses(tmp_path: Path):
    clients = Clients(tmp_path, repeats_errors=False, **LOSSY)
    clients.train(1, away(clients), 0, 1)
    clients.grid.kept[0] = RecordDict()
    clients.train(2, away(clients, 1.1), 0, 1)
    (failure,) = clients.failures
    assert failure.client == 0
    assert (
        "relies on the stored record held-arrays number 1, but this client has stored nothing"
        in failure.reason
    )
    clients.train(3, away(clients, 1.2), 0, 1)
    assert clients.failures == []


def test_a_context_that_was_stored_goes_on_with_the_same_bits(tmp_path: Path):
    """A resumed run reads the context through Flower's own serialisation."""
    clients, again = (Clients(tmp_path / name, **LOSSY) for name in ("one", "two"))
    for each in (clients, again):
        each.train(1, away(clients))
    again.grid.kept = [_stored(state) for state in again.grid.kept]
    one, two = (each.train(2, away(clients, 1.1)) for each in (clients, again))
    assert all(equal(a.delta, b.delta) for a, b in zip(one, two, strict=True))
    assert equal(withheld(clients, 2), withheld(again, 2))


def _stored(state: RecordDict) -> RecordDict:
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_id,
    )
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    contents = {name: part.deflate() for name, part in get_all_nested_objects(state).items()}
    found = inflate_object_from_contents(get_object_id(state.deflate()), contents)
    assert isinstance(found, RecordDict)
    return found


def test_a_group_that_rests_on_the_wire_is_trained_on_from_where_it_was(tmp_path: Path):
    """Over two rounds the head moves as it does for a client that never let go of it."""
    clients = Clients(tmp_path, compression__uplink__head="every(2)+float32")
    (first,) = clients.train(1, clients.initial, 0)
    assert not first.delta["head.weight"].any()
    trained = withheld(clients, 0)
    assert trained["head.weight"].any()
    other = Clients(tmp_path / "other")
    (whole,) = other.train(1, other.initial, 0)
    assert torch.equal(whole.delta["head.weight"], trained["head.weight"])

    model = moved(clients.initial, first)
    (second,) = clients.train(2, model, 0)
    continued = model | add({n: model[n] for n in trained}, trained)
    (apart,) = other.train(2, continued, 0)
    expected = add({n: apart.delta[n] for n in trained}, trained)
    assert close({n: second.delta[n] for n in trained}, expected)
    assert not any(tensor.any() for tensor in withheld(clients, 0).values())


def test_what_a_client_has_not_sent_yet_is_not_measured(tmp_path: Path):
    clients = Clients(tmp_path, compression__uplink__head="every(2)+float32")
    before = clients.transport.measure(1, GlobalModel(tensors=clients.initial), [RIGHT_KEY])
    clients.train(1, clients.initial)
    assert clients.transport.measure(1, GlobalModel(tensors=clients.initial), [RIGHT_KEY]) == before


def test_what_was_measured_need_not_be_sent_again(tmp_path: Path):
    clients = Clients(tmp_path, **LOSSY)
    clients.train(1, clients.initial)
    model = away(clients)
    clients.transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])
    assert sum(last_groups(clients, 0).values()) > 0
    clients.train(2, model)
    assert clients.failures == []
    assert last_groups(clients, 0) == {}


def test_a_tensor_that_rests_is_neither_coded_nor_sent(tmp_path: Path):
    from tests.flower.client.test_context_state import B_ROUND

    clients = Clients(tmp_path, **LOSSY)
    clients.train(1, away(clients), plan=B_ROUND)
    reply = unfold(clients.grid.received[0].content).groups
    assert "lora_A" not in reply
    assert reply["lora_B"] > 0


def test_without_error_feedback_nothing_is_withheld(tmp_path: Path):
    clients = Clients(tmp_path, **LOSSY, compression__error_feedback=False)
    clients.train(1, away(clients))
    assert withheld(clients, 0) == {}


def test_without_error_feedback_an_interval_withholds_what_did_not_travel(tmp_path: Path):
    lanes: dict[str, Any] = {"compression__uplink": "every(2)+int4"}
    clients = Clients(tmp_path, **lanes, compression__error_feedback=False)
    clients.train(1, away(clients), 0)
    assert any(tensor.any() for tensor in withheld(clients, 0).values())
    clients.train(2, away(clients), 0)
    assert withheld(clients, 0) == {}


def test_what_a_client_was_not_sent_is_not_spared_it(tmp_path: Path):
    """B rested while its lane was closed: once it is open, the client gets the server's."""
    from tests.flower.client.test_context_state import A_ROUND, B_ROUND

    clients = Clients(tmp_path, compression__downlink="every(3)+float16", rounds=9)
    model = away(clients, 1.0)
    for server_round, plan in enumerate((B_ROUND, A_ROUND, B_ROUND), start=1):
        model = {n: t + 1 if n.endswith(B) else t for n, t in model.items()}
        clients.train(server_round, model, 0, plan=plan)
        assert clients.failures == []
    known = held(clients, 0, 1)
    assert all(torch.equal(known[n], model[n].half().float()) for n in model if n.endswith(B))


def test_factors_in_new_coordinates_owe_nothing_of_the_old(tmp_path: Path):
    """FlexLoRA factors the product anew in every round."""
    flexlora = client_half(strategies.load("flexlora", {}))
    clients = Clients(tmp_path, flexlora, compression__uplink="sign")
    clients.train(1, clients.initial, 0)
    (update,) = clients.train(2, clients.initial, 0)
    exact = Clients(tmp_path / "exact", flexlora)
    (whole,) = exact.train(2, exact.initial, 0)
    now = add(update.delta, withheld(clients, 0))
    pairs = [name for name in now if name.endswith((A, B))]
    rest = [name for name in now if name not in pairs]
    assert close({n: now[n] for n in pairs}, {n: whole.delta[n] for n in pairs})
    assert not close({n: now[n] for n in rest}, {n: whole.delta[n] for n in rest})


def test_clients_of_their_own_ranks_follow_streams_of_their_own(tmp_path: Path):
    ranks: dict[str, Any] = {"finetuning__client_ranks": [1, 2, 2]}
    clients = Clients(tmp_path, strategies.load("flexlora", {}), **LOSSY, **ranks)  # type: ignore[arg-type]
    for server_round in (1, 2):
        updates = clients.train(server_round, away(clients, 1 + server_round / 10))
        assert clients.failures == []
    for update in updates:
        rows = [t.abs().sum(1) for n, t in update.delta.items() if n.endswith(A)]
        assert all((row[: update.rank] > 0).any() and not row[update.rank :].any() for row in rows)


CASES: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in strategies.available()]
CASES += [(f"flwr.serverapp.strategy:{name}", dict(given)) for name, given in FLOWER.items()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=name, marks=[pytest.mark.slow] if number % 4 else [])
        for number, (name, options) in enumerate(CASES)  # each fourth one in the first tier
    ],
)
def test_every_strategy_works_with_coded_tensors(
    name: str, options: dict[str, Any], tmp_path: Path
):
    """It is shown whole tensors in full precision, whoever takes part."""
    strategy = strategies.load(name, options, cohort=3, clients=3)
    lanes: dict[str, Any] = {
        "compression__uplink": "topk(0.2)+int4",
        "compression__uplink__patch_embed": "every(2)+int4",
        "compression__downlink": "int4",
    }
    clients = Clients(tmp_path, client_half(strategy), **lanes)
    aggregator = make_aggregator(strategy, Layout.of(clients.initial), 0)
    model = GlobalModel(tensors=clients.initial)
    fixed = isinstance(strategy, flower.Strategy)  # these want the number that they were told
    for server_round, present in enumerate(((0, 1, 2), (0, 2), (0, 1, 2)), start=1):
        config = {SERVER_ROUND: server_round, LEARNING_RATE: 1e-2}
        asked = aggregator.instruct(server_round, model, (0, 1, 2) if fixed else present, config)
        updates, failures = both(clients.transport.exchange(server_round, asked))
        assert failures == []
        assert all(_is_whole(update, model.tensors) for update in updates)
        model = aggregator.aggregate(server_round, model, updates, failures)
    assert model.differs_from(GlobalModel(tensors=clients.initial)) or model.rounds
    assert EXACT.exact


def _is_whole(update: Update, model: State) -> bool:
    return all(
        tensor.shape == model[name].shape and tensor.dtype == torch.float32
        for name, tensor in update.delta.items()
    )


def test_an_update_is_shortened_to_the_norm_that_noise_is_scaled_for(tmp_path: Path):
    """What was withheld before is added to what is clipped now."""
    from fl_vitlora.state import clip_norm

    norm = 0.05
    clients = Clients(tmp_path, compression__uplink="sign", privacy__clipping_norm=norm)
    longer = 0
    for server_round in range(1, 4):
        for update in clients.train(server_round, clients.initial):
            assert l2_norm(update.delta) <= norm * (1 + 1e-6)
            longer += not clip_norm(update.delta, norm * (1 - 1e-6))[1]
    assert longer > 0


def test_factors_that_begin_anew_owe_nothing_of_the_last_round(tmp_path: Path):
    """FLoRA's pairs start over in every round: what was withheld belongs to others."""
    flora = client_half(strategies.load("flora", {}))
    clients = Clients(tmp_path, flora, compression__uplink="sign")
    plan = flora.plan(1)
    clients.train(1, clients.initial, 0, plan=plan)
    (update,) = clients.train(2, clients.initial, 0, plan=plan)
    exact = Clients(tmp_path / "exact", flora)
    exact.train(1, exact.initial, 0, plan=plan)
    (whole,) = exact.train(2, exact.initial, 0, plan=plan)
    now = add(update.delta, withheld(clients, 0))
    pairs = [name for name in now if name.endswith((A, B))]
    assert close({n: now[n] for n in pairs}, {n: whole.delta[n] for n in pairs})


@pytest.mark.parametrize("ranks", [[2**40], [2**31], [-1], [0.5]])
@pytest.mark.parametrize("codec", ["topk(0.1)", "float32", "sign", "int4"])
def test_ranks_that_nothing_was_sent_for_allocate_nothing(
    tmp_path: Path, codec: str, ranks: list[int]
):
    """The sender of merged pairs states their shapes; a few bytes must not become terabytes."""
    clients = Clients(tmp_path)
    pairs = pairs_of(clients.worker.layout)
    config = ConfigRecord({messages.MERGED_RANKS: ranks + [0 * ranks[0]] * (len(pairs) - 1)})
    asked = RecordDict({messages.CONFIG: config})
    context = clients.context(0)
    context.node_config["partition-id"] = 0
    end = ClientEnd(settings=clients.settings, context=context, asked=asked)
    layout = merged_layout(clients.worker.layout, {pairs[0]: ranks[0]})
    group = group_of(layout.names[0])
    part = Part(digest=layout.digest, sections=(Section(group=group, codec=codec, body=b"\0"),))
    tracemalloc.start()
    with pytest.raises(ValueError, match="refused"):
        end.decoded(messages.MERGED, (part,), None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
