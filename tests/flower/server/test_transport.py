"""Instructions out, updates in: sorted, checked, counted; whatever goes wrong becomes a failure."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.config import AttackConfig
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY
from fl_vitlora.data.shards import (
    client_shard,
    open_shard,
)
from fl_vitlora.data.views import VALIDATION, sampled
from fl_vitlora.errors import UserError
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import fold, unfold
from fl_vitlora.population import byzantine
from fl_vitlora.rng import generator
from fl_vitlora.state import State, l2_norm, scale, subtract
from fl_vitlora.strategy import ClientPlan
from fl_vitlora.training.local import LocalTask, evaluate, train
from tests.flower.conftest import (
    KEYS,
    SIZES,
    TEST_SIZES,
    VALIDATION_SIZES,
    LocalGrid,
    both,
    folds,
    transport_of,
)

DIRECTIONS = ("downlink", "uplink")
CONFIG = {SERVER_ROUND: 1, LEARNING_RATE: 1e-3}


SAID: dict[str, Any] = {"num-examples": 12, "train_loss": 1.0, "steps": 2}  # by client 1


@pytest.fixture
def model(settings: ClientSettings) -> State:
    torch.manual_seed(0)
    layout = workspace(settings).layout
    return {name: 0.05 * torch.randn(shape) for name, shape in layout.shapes}


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def transport(grid: LocalGrid, model: State, ledger: Ledger, settings: ClientSettings) -> Transport:
    transport = transport_of(grid, model, ledger, config=settings.config, timeout=1)
    assert transport.greet(len(SIZES)) == dict(enumerate(SIZES))
    return transport


def instruct(
    model: State, *clients: int, plan: ClientPlan | None = None, **config: float
) -> list[Instruction]:
    settings = {**CONFIG, **{name.replace("_", "-"): value for name, value in config.items()}}
    whole, asked = GlobalModel(tensors=model), plan or ClientPlan()
    return [Instruction(client=c, model=whole, config=settings, plan=asked) for c in clients]


def test_updates_come_sorted_by_client(transport: Transport, model: State):
    updates, failures = both(transport.exchange(1, instruct(model, 2, 0, 1)))
    assert failures == []
    assert [(u.client, u.samples) for u in updates] == [(0, 20), (1, 12), (2, 8)]
    assert all(u.delta.keys() == model.keys() for u in updates)


def test_an_update_is_what_training_on_the_shard_gives(
    transport: Transport, model: State, settings: ClientSettings, shards: Path
):
    (update,), _ = both(transport.exchange(1, instruct(model, 1)))
    done = train(
        workspace(settings).backbone,
        model,
        open_shard(shards / client_shard(1), KEYS),
        config=settings.config.training,
        task=LocalTask(learning_rate=1e-3),
        generator=generator(0, "batches", 1, 1),
    )
    assert (update.loss, update.steps) == (done.loss, done.steps)
    assert all(torch.equal(update.delta[n], t) for n, t in subtract(done.state, model).items())


def test_the_same_round_gives_the_same_bits_and_another_round_others(
    transport: Transport, model: State
):
    first, again, other = (
        transport.exchange(r, instruct(model, 0, server_round=r)).updates[0].delta
        for r in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in model)
    assert not all(torch.equal(first[name], other[name]) for name in model)


def test_a_client_that_draws_its_order_anew_never_gives_an_update_twice(
    model: State, settings: ClientSettings
):
    """Client 2 does not either: its images are all in one batch, where no order matters."""
    fresh = replace(settings, fresh_order=True)
    grid = LocalGrid(make_client_app(lambda context: fresh), len(SIZES))
    transport = transport_of(grid, model, Ledger(), config=settings.config, timeout=1)
    transport.greet(len(SIZES))
    first, again = (list(transport.exchange(1, instruct(model, 0, 1, 2)).updates) for _ in range(2))
    assert [update.samples for update in again] == list(SIZES)
    for one, other in zip(first, again, strict=True):
        assert l2_norm(subtract(one.delta, other.delta)) > 0.02 * l2_norm(one.delta)


def test_frozen_tensors_are_neither_trained_nor_sent(
    transport: Transport, model: State, ledger: Ledger
):
    plan = ClientPlan(frozen=(".lora_A", ".bias"))
    changed = {name: tensor + 1 for name, tensor in model.items()}
    (update,), _ = both(transport.exchange(1, instruct(changed, 0, plan=plan)))
    assert update.delta.keys() == {n for n in model if not n.endswith((".lora_A", ".bias"))}
    down, up = (next(e for e in ledger if e.round and e.direction == d) for d in DIRECTIONS)
    assert down.payload - up.payload == 4 * sum(
        t.numel() for n, t in model.items() if n not in update.delta
    )


def test_replies_that_did_not_come_in_time_are_given_up(grid: LocalGrid, model: State) -> None:
    states = ClientStates()
    transport = transport_of(grid, model, Ledger(), timeout=1, states=states)
    transport.greet(len(SIZES))
    grid.silent = {1}
    transport.exchange(1, instruct(model, 0, 1, 2))
    sent = {m.metadata.dst_node_id - 100: m.metadata.message_id for m in grid.sent}
    assert {client: states.is_given_up(sent[client]) for client in sent} == {
        0: False,
        1: True,
        2: False,
    }


def test_who_made_its_update_out_of_its_bundle_is_told_round_by_round(
    grid: LocalGrid, model: State
) -> None:
    states = ClientStates()
    transport = transport_of(grid, model, Ledger(), timeout=1, states=states)
    transport.greet(len(SIZES))
    states.take_apart(["message 0", "message 2"])  # to the clients 0 and 2, who have most and least
    done = transport.exchange(1, instruct(model, 0, 1, 2))
    assert done.taken_apart == (0, 2)
    done = transport.exchange(2, instruct(model, 1))
    assert done.taken_apart == (1,)  # the local grid counts anew
    grid.silent = {1}
    done = transport.exchange(3, instruct(model, 1))
    assert done.taken_apart == ()


def test_the_penalty_reaches_the_client(transport: Transport, model: State):
    free, held = (
        transport.exchange(1, instruct(model, 0, plan=ClientPlan(proximal_mu=mu))).updates[0].delta
        for mu in (0.0, 100.0)
    )
    assert not all(torch.equal(free[name], held[name]) for name in model)


def test_a_client_clips_its_update_to_the_norm_that_it_is_told(transport: Transport, model: State):
    """Flower's wrappers for differential privacy ask for this."""
    (asked,) = instruct(model, 0)
    ((free,), _) = both(transport.exchange(1, [asked]))
    norm = l2_norm(free.delta)
    assert free.report == {}
    for most, bit in ((2 * norm, 0), (norm / 2, 1)):
        told = replace(asked, config={**asked.config, messages.CLIPPING_NORM: most})
        ((update,), _) = both(transport.exchange(1, [told]))
        assert int(update.report[messages.NORM_BIT]) == bit
        expected = scale(free.delta, 0.5 if bit else 1.0)
        assert all(torch.allclose(update.delta[n], t, atol=1e-7) for n, t in expected.items())


def test_a_diverged_update_is_a_failure(transport: Transport, model: State):
    asked = instruct(model, 0, 2) + instruct(model, 1, learning_rate=1e30)
    updates, (failure,) = both(transport.exchange(1, asked))
    assert [update.client for update in updates] == [0, 2]
    assert failure.client == 1
    assert "NaN or infinity" in failure.reason


@pytest.mark.parametrize(("number", "taken"), [(1e6, [1]), (-1e6, [1]), (1.001e6, []), (-1e30, [])])
@pytest.mark.parametrize("record", [messages.ARRAYS, messages.REPORT])
def test_an_absurd_number_is_refused_as_nan_is(
    transport: Transport,
    model: State,
    grid: LocalGrid,
    *,
    number: float,
    taken: list[int],
    record: str,
):
    said = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    spoilt = {**said, "head.bias": torch.full_like(model["head.bias"], number)}
    metrics = MetricRecord({"num-examples": 12, "train_loss": 1.0, "steps": 2})
    states = {messages.ARRAYS: said, messages.REPORT: said, record: spoilt}
    packed = {name: messages.to_packed(state) for name, state in states.items()}
    foreign = ClientApp(mods=[folds])

    @foreign.train()
    def _train(message: Message, context: Context) -> Message:
        return Message(RecordDict({**packed, messages.METRICS: metrics}), reply_to=message)

    grid.app = foreign
    updates, failures = both(transport.exchange(1, instruct(model, 1)))
    assert [update.client for update in updates] == taken
    assert [failure.client for failure in failures if "beyond 1e+06" in failure.reason] == (
        [] if taken else [1]
    )


def test_a_client_does_not_send_an_absurd_number(transport: Transport, model: State):
    """At this rate training moves the head's bias by millions."""
    plan = ClientPlan(frozen=(".weight", "proj.bias", ".lora_A", ".lora_B"))
    updates, (failure,) = both(
        transport.exchange(1, instruct(model, 1, plan=plan, learning_rate=1e7))
    )
    assert updates == []
    assert "its update holds a number beyond 1e+06" in failure.reason


def test_the_attack_by_scale_is_no_absurd_number(
    transport: Transport, model: State, grid: LocalGrid, settings: ClientSettings
):
    """With its default factor and the default rate: to refuse it is the strategy's part."""
    config = replace(settings.config, clients=3, attack=AttackConfig(kinds=("scale",), clients=1))
    grid.app = make_client_app(lambda context: replace(settings, config=config))
    rate = settings.config.training.learning_rate
    updates, failures = both(transport.exchange(1, instruct(model, 0, 1, 2, learning_rate=rate)))
    assert failures == []
    norms = sorted(l2_norm(update.delta) for update in updates)
    assert norms[2] > 20 * norms[1]


def test_hostile_clients_send_what_they_are_to_and_the_others_what_they_learnt(
    transport: Transport, model: State, grid: LocalGrid, settings: ClientSettings
):
    honest, _ = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    attack = AttackConfig(kinds=("scale", "nan"), clients=2, factor=10.0)
    config = replace(settings.config, clients=3, attack=attack)
    grid.app = make_client_app(lambda context: replace(settings, config=config))
    updates, failures = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert [failure.client for failure in failures] == byzantine.hostile(config)["nan"]
    for update in updates:
        factor = 10.0 if byzantine.kind_of(config, update.client) else 1.0
        expected = honest[update.client].delta
        assert all(torch.equal(update.delta[n], factor * t) for n, t in expected.items())


def test_a_client_that_raises_is_a_failure_that_names_the_cause(grid: LocalGrid, model: State):
    """The server's model lacks a tensor that the clients' has."""
    wrong = {name: tensor for name, tensor in model.items() if name != "head.bias"}
    transport = transport_of(grid, wrong, Ledger(), timeout=1)
    transport.greet(len(SIZES))
    updates, failures = both(transport.exchange(1, instruct(wrong, 0, 1)))
    assert updates == []
    assert [failure.client for failure in failures] == [0, 1]
    for failure in failures:
        assert failure.reason.startswith("message refused: its tensors are not")
        assert "do client and server build the same model?" in failure.reason


class Failing:
    """A client app that fails at first, and does well from then on.

    Args:
        grid: The grid whose app fails.
        client: The client at which the app fails.
        how: The way in which the app fails: it raises an error, its reply is spoilt or lost, or
            Flower answers in its place.
        times: The number of failures.
    """

    def __init__(self, grid: LocalGrid, client: int, how: str, times: int = 1) -> None:
        self.asked = 0  # how often the client was
        self._app, self._client, self._how, self._times = grid.app, client, how, times
        grid.app = self  # type: ignore[assignment]

    def __call__(self, message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] != self._client:
            return self._app(message, context)
        self.asked += 1
        if self.asked > self._times:
            return self._app(message, context)
        if self._how == "raises":
            raise RuntimeError(f"out of memory, {self.asked}")
        if self._how == "is spoilt":
            return Message(RecordDict(), reply_to=message)
        return Message(Error(4, "no reply was received"), reply_to=message)


@pytest.mark.parametrize("how", ["raises", "is spoilt"])
def test_a_client_that_fails_is_asked_once_more_in_the_same_round(
    transport: Transport, model: State, grid: LocalGrid, ledger: Ledger, how: str
):
    expected, _ = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    failing = Failing(grid, 1, how)
    updates, failures = both(transport.exchange(2, instruct(model, 0, 1, 2)))
    assert (failing.asked, failures) == (2, [])
    for update, wanted in zip(updates, expected, strict=True):
        assert update.client == wanted.client
        assert all(torch.equal(update.delta[n], t) for n, t in wanted.delta.items())
    counted = Counter((e.client, e.direction) for e in ledger if e.round == 2)
    assert counted == {(c, d): 1 + (c == 1) for c in range(3) for d in DIRECTIONS}


def test_a_reply_that_cannot_be_read_is_counted_as_overhead(
    transport: Transport, model: State, grid: LocalGrid, ledger: Ledger
):
    app = grid.app

    def corrupts(message: Message, context: Context) -> Message:
        reply = app(message, context)
        (record,) = reply.content.config_records.values()
        ((name, buffer),) = record.items()
        assert isinstance(buffer, bytes)
        record[name] = buffer[:-1] + bytes([buffer[-1] ^ 1])
        return reply

    both(transport.exchange(1, instruct(model, 1)))
    grid.app = corrupts  # type: ignore[assignment]
    _, (failure,) = both(transport.exchange(2, instruct(model, 1)))
    assert "corrupted" in failure.reason
    good, *bad = (e for e in ledger if e.round and e.direction == "uplink")
    assert good.payload > 0
    assert [entry.payload for entry in bad] == [0, 0]
    assert {entry.total for entry in (good, *bad)} == {good.total}


@pytest.mark.parametrize("how", ["raises", "is spoilt"])
def test_who_fails_twice_is_a_failure_that_tells_of_both_times(
    transport: Transport, model: State, grid: LocalGrid, how: str
):
    failing = Failing(grid, 1, how, times=9)
    updates, (failure,) = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert failing.asked == 2
    assert [update.client for update in updates] == [0, 2]
    if how == "raises":
        assert failure.reason == "out of memory, 1"
        before, again = failure.trace.split("asked again:")
        assert "out of memory, 1" in before
        assert "out of memory, 2" in again
    else:
        assert "not in the format of this app" in failure.reason
        assert failure.trace == failure.reason  # told once: it was the same twice


def test_errors_are_not_repeated_where_the_engine_has_done_so(
    grid: LocalGrid, model: State, ledger: Ledger
):
    transport = transport_of(grid, model, ledger, timeout=1, repeats_errors=False)
    transport.greet(len(SIZES))
    raising, spoilt = Failing(grid, 1, "raises"), Failing(grid, 2, "is spoilt")
    updates, failures = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert (raising.asked, spoilt.asked) == (1, 2)
    assert [update.client for update in updates] == [0, 2]
    assert [failure.client for failure in failures] == [1]


def test_whoever_flower_says_did_not_answer_is_not_asked_again(
    transport: Transport, model: State, grid: LocalGrid
):
    failing = Failing(grid, 1, "is given up")
    _, (failure,) = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert (failing.asked, failure.reason) == (1, "no reply was received")


@pytest.mark.parametrize("how", ["raises", "is spoilt"])
def test_who_fails_to_measure_is_asked_once_more(
    transport: Transport, model: State, grid: LocalGrid, how: str
):
    expected = transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])
    failing = Failing(grid, 2, how)
    assert transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY]) == expected
    assert failing.asked == 2


def test_who_answered_while_nobody_could_look_is_heard(
    transport: Transport, model: State, grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
):
    """A machine may have slept beyond the time limit."""
    look, looks = grid.pull_messages, [0]

    def look_and_sleep(message_ids: Iterable[str]) -> list[Message]:
        looks[0] += 1
        if looks[0] > 1:
            return look(message_ids)
        time.sleep(1.1)
        return []

    monkeypatch.setattr(grid, "pull_messages", look_and_sleep)
    updates, failures = both(transport.exchange(1, instruct(model, 0, 1)))
    assert failures == []
    assert [update.client for update in updates] == [0, 1]
    assert looks == [2]


@pytest.mark.parametrize("claimed", [0, -1, 10**9 + 1, 2**62, 1.5, [3], math.nan])
def test_a_greeting_with_an_absurd_number_of_images_is_refused(
    grid: LocalGrid, model: State, claimed: Any
):
    app = grid.app

    def boast(message: Message, context: Context) -> Message:
        reply = app(message, context)
        content, _, _ = unfold(reply.content)
        content.metric_records[messages.METRICS][messages.SAMPLES] = claimed
        reply.content = fold(content, {}, {})
        return reply

    grid.app = boast  # type: ignore[assignment]
    with pytest.raises(
        RuntimeError, match=r"sent an invalid answer to .* question: .*(images|number)"
    ):
        transport_of(grid, model, Ledger(), timeout=1).greet(len(SIZES))


def test_test_images_do_not_change_their_number(
    transport: Transport, model: State, grid: LocalGrid
):
    transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])
    app = grid.app

    def more(message: Message, context: Context) -> Message:
        reply = app(message, context)
        content, _, _ = unfold(reply.content)
        content.metric_records[messages.METRICS][messages.SAMPLES] = 10**6
        reply.content = fold(content, {}, {})
        return reply

    grid.app = more  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="reports 1000000 test images, but it reported 5"):
        transport.measure(2, GlobalModel(tensors=model), [RIGHT_KEY])


@pytest.mark.parametrize(("share", "weights"), [(None, [20, 12, 8]), (0.4, [13, 12, 8])])
def test_no_client_weighs_more_than_its_largest_share(
    grid: LocalGrid,
    model: State,
    settings: ClientSettings,
    share: float | None,
    weights: list[int],
):
    config = replace(settings.config, max_client_share=share)
    transport = transport_of(grid, model, Ledger(), config=config, timeout=1)
    transport.greet(len(SIZES))
    updates, _ = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert [update.samples for update in updates] == weights


def test_nobody_gains_weight_because_others_are_silent(
    grid: LocalGrid, model: State, settings: ClientSettings
):
    config = replace(settings.config, max_client_share=0.5)
    transport = transport_of(grid, model, Ledger(), config=config, timeout=1)
    transport.greet(len(SIZES))
    grid.silent = {2}
    updates, _ = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert [update.samples for update in updates] == [12, 12]


def test_a_silent_client_is_a_failure(transport: Transport, model: State, grid: LocalGrid):
    grid.silent = {0, 2}
    grid.passed.clear()
    updates, failures = both(transport.exchange(1, instruct(model, 0, 1, 2)))
    assert [update.client for update in updates] == [1]
    assert len(grid.passed) == 3 + 1  # it is not asked again
    assert failures == [Failure.of(1, client, "no reply within 1 s") for client in (0, 2)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (RecordDict(), "contains no packed tensors"),
        (RecordDict({"metrics": MetricRecord({"num-examples": 3})}), "contains no packed tensors"),
        (None, "contains no metrics"),
        ({"train_loss": 1.0}, "'num-examples' is None, not a number"),
        (SAID | {"train_loss": [1.0]}, "not a number"),
        (SAID | {"num-examples": 0}, "reports 0 images, but its first message reported 12"),
        (SAID | {"num-examples": -12}, "reports -12 images"),
        (SAID | {"num-examples": 13}, "reports 13 images"),
        (SAID | {"num-examples": 2**62}, "reports 4611686018427387904 images"),
        (SAID | {"num-examples": 12.5}, "12.5, not a whole number"),
        (SAID | {"num-examples": math.nan}, "nan, not a whole number"),
        (SAID | {"num-examples": [12]}, "not a number"),
        (SAID | {"steps": 0}, "reports 0 steps, but its 12 images need 2"),
        (SAID | {"steps": 3}, "reports 3 steps"),
        (SAID | {"steps": 2**62}, "steps"),
        (SAID | {"steps": 2.5}, "not a whole number"),
        (SAID | {"train_loss": math.nan}, "a loss of nan"),
        (SAID | {"train_loss": -0.1}, "a loss of -0.1"),
        (SAID | {"train_loss": 1e30}, "a loss of 1e+30"),
        (SAID | {"train_loss": math.inf}, "not a number"),
        (SAID, "'norm_bit' is None"),
        (SAID | {"norm_bit": 7}, "a norm bit of 0 or 1, got 7"),
    ],
    ids=lambda value: None if isinstance(value, RecordDict) else str(value)[-40:],
)
def test_a_malformed_reply_is_a_failure(
    transport: Transport,
    model: State,
    grid: LocalGrid,
    content: RecordDict | dict[str, Any] | None,
    reason: str,
):
    if not isinstance(content, RecordDict):
        metrics = {} if content is None else {"metrics": MetricRecord(content)}
        content = RecordDict({"arrays": messages.to_packed(model), **metrics})
    foreign, reply = ClientApp(mods=[folds]), content

    @foreign.train()
    def _train(message: Message, context: Context) -> Message:
        return Message(reply, reply_to=message)

    grid.app = foreign
    (asked,) = instruct(model, 1)
    clipping = replace(asked, config={**asked.config, messages.CLIPPING_NORM: 1.0})
    updates, (failure,) = both(transport.exchange(1, [clipping]))
    assert updates == []
    assert reason in failure.reason


def test_every_message_is_counted_by_its_serialised_parts(
    transport: Transport, model: State, ledger: Ledger, grid: LocalGrid
):
    grid.silent = {2}
    grid.passed.clear()
    asked = instruct(model, 0, 2) + instruct(model, 1, learning_rate=math.nan)
    transport.exchange(1, asked)
    passed = grid.passed
    assert len(passed) == 3 + 2 + 2  # the second client is asked twice
    counted = [entry for entry in ledger if entry.round == 1]
    assert len(counted) == len(passed)
    assert ledger.total(server_round=1) == sum(
        len(part.deflate())
        for message in passed
        for part in get_all_nested_objects(message).values()
    )
    whole = 4 * sum(tensor.numel() for tensor in model.values())
    payloads = sorted((entry.client, entry.direction, entry.payload) for entry in counted)
    assert payloads == [
        (0, "downlink", whole),
        (0, "uplink", whole),
        (1, "downlink", whole),
        (1, "downlink", whole),
        (1, "uplink", 0),
        (1, "uplink", 0),
        (2, "downlink", whole),
    ]


def test_the_greeting_is_counted_in_round_0_without_payload(transport: Transport, ledger: Ledger):
    entries = list(ledger)
    assert {(e.round, e.payload) for e in entries} == {(0, 0)}
    assert sorted((e.client, e.direction) for e in entries) == [
        (client, direction) for client in range(3) for direction in DIRECTIONS
    ]


def test_a_tap_sees_every_message(grid: LocalGrid, model: State):
    seen: list[Message] = []
    transport = transport_of(grid, model, Ledger(), timeout=5, tap=seen.append)
    transport.greet(3)
    assert len(seen) == 6
    transport.exchange(1, instruct(model, 0, 1))
    assert len(seen) == 10


def test_clients_measure_a_model_on_test_images_of_their_own(
    transport: Transport, model: State, settings: ClientSettings, shards: Path
):
    answers = transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])
    assert [answer.images for answer in answers] == list(TEST_SIZES)
    for client, _, measured, _ in answers:
        own = open_shard(shards / client_shard(client, "test"), KEYS)
        assert measured == {RIGHT_KEY: evaluate(workspace(settings).backbone, model, own)}


def test_clients_measure_a_model_on_validation_images_of_their_own(
    transport: Transport, model: State, settings: ClientSettings, shards: Path
):
    answers = transport.measure(1, GlobalModel(tensors=model), [VALIDATION, RIGHT_KEY])
    assert [answer.validation_images for answer in answers] == list(VALIDATION_SIZES)
    for answer in answers:
        own = open_shard(shards / client_shard(answer.client, "validation"), KEYS)
        assert len(own) == answer.validation_images
        expected = evaluate(workspace(settings).backbone, model, own)
        assert answer.measured[VALIDATION] == expected != answer.measured[RIGHT_KEY]


def test_each_client_measures_an_equal_part_of_some_images(
    transport: Transport, model: State, settings: ClientSettings, shards: Path
):
    """Ten of all, so four of each; a client with fewer takes all, and all weigh as before."""
    answers = transport.measure(1, GlobalModel(tensors=model), [VALIDATION, RIGHT_KEY], 10)
    assert [answer.images for answer in answers] == list(TEST_SIZES)
    for answer in answers:
        for view, name in (
            (VALIDATION, client_shard(answer.client, "validation")),
            (RIGHT_KEY, client_shard(answer.client, "test")),
        ):
            few = sampled(open_shard(shards / name, KEYS), 4, view)
            assert len(few) == min(4, answer.weight(view))
            expected = evaluate(workspace(settings).backbone, model, few)
            assert answer.measured[view] == expected


def test_measuring_changes_nothing_in_what_is_trained_next(transport: Transport, model: State):
    first = transport.exchange(1, instruct(model, 0)).updates[0].delta
    other = {name: -tensor for name, tensor in model.items()}
    transport.measure(1, GlobalModel(tensors=other), [RIGHT_KEY])
    again = transport.exchange(1, instruct(model, 0)).updates[0].delta
    assert all(torch.equal(first[name], tensor) for name, tensor in again.items())


def test_messages_of_evaluation_are_counted_as_such(
    transport: Transport, model: State, ledger: Ledger
):
    transport.measure(4, GlobalModel(tensors=model), [RIGHT_KEY])
    counted = [entry for entry in ledger if entry.round == 4]
    assert {entry.purpose for entry in counted} == {"evaluation"}
    whole = 4 * sum(tensor.numel() for tensor in model.values())
    payloads = sorted((entry.client, entry.direction, entry.payload) for entry in counted)
    assert payloads == [
        (client, direction, whole if direction == "downlink" else 0)
        for client in range(3)
        for direction in DIRECTIONS
    ]


def test_a_client_that_does_not_measure_in_time_ends_the_run(
    transport: Transport, model: State, grid: LocalGrid
):
    """A mean over some of the test images could not be compared with others."""
    grid.silent = {0, 2}
    with pytest.raises(RuntimeError) as caught:
        transport.measure(5, GlobalModel(tensors=model), [RIGHT_KEY])
    assert str(caught.value) == (
        "round 5: 2 of 3 clients did not evaluate the model; client 0: no reply within 1 s; "
        "client 2: no reply within 1 s"
    )


def test_a_client_that_cannot_measure_ends_the_run_and_is_named(grid: LocalGrid, model: State):
    wrong = {name: tensor for name, tensor in model.items() if name != "head.bias"}
    transport = transport_of(grid, wrong, Ledger(), timeout=1)
    transport.greet(len(SIZES))
    with pytest.raises(
        RuntimeError, match=r"3 of 3 clients .*; client 0: message refused: its tensors are not"
    ):
        transport.measure(1, GlobalModel(tensors=wrong), [RIGHT_KEY])


def test_who_has_no_key_cannot_show_the_plain_images(transport: Transport, model: State):
    with pytest.raises(RuntimeError, match=rf"; client 0: .*{NO_KEY}"):
        transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY, NO_KEY])


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (None, "contains no metrics"),
        ({}, "'num-examples' is None, not a number"),
        ({"num-examples": 3, "accuracy/right_key": 0.5}, "'loss/right_key' is None"),
        ({"num-examples": 3, "accuracy/right_key": [0.5], "loss/right_key": 1.0}, "not a number"),
        ({"num-examples": 0, "accuracy/right_key": 0.5, "loss/right_key": 1.0}, "0 images"),
        ({"num-examples": 2**62, "accuracy/right_key": 0.5, "loss/right_key": 1.0}, "images"),
        ({"num-examples": 3, "accuracy/right_key": 1.5, "loss/right_key": 1.0}, "accuracy of 1.5"),
        ({"num-examples": 3, "accuracy/right_key": -1, "loss/right_key": 1.0}, "accuracy of -1"),
        ({"num-examples": 3, "accuracy/right_key": 0.5, "loss/right_key": -1.0}, "loss of -1"),
        ({"num-examples": 3, "accuracy/right_key": math.nan, "loss/right_key": 1.0}, "of nan"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[-30:],
)
def test_a_malformed_measurement_ends_the_run(
    transport: Transport,
    model: State,
    grid: LocalGrid,
    metrics: dict[str, int | float | list[int] | list[float]] | None,
    reason: str,
):
    foreign = ClientApp(mods=[folds])

    @foreign.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        content = RecordDict()
        if metrics is not None:
            content["metrics"] = MetricRecord(metrics)
        return Message(content, reply_to=message)

    grid.app = foreign
    with pytest.raises(RuntimeError, match=f"; client 0: .*{reason}"):
        transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        ({}, "'num-examples/validation' is None, not a number"),
        ({"num-examples/validation": 0}, "0 images"),
        ({"num-examples/validation": 5}, "it reports 5 validation images, but it reported 4 at"),
    ],
)
def test_a_client_states_its_validation_images_and_keeps_to_them(
    transport: Transport, model: State, grid: LocalGrid, stated: dict[str, int], reason: str
):
    """Else it could choose its weight anew in each round."""
    asked = GlobalModel(tensors=model), [VALIDATION, RIGHT_KEY]
    transport.measure(1, *asked)
    foreign = ClientApp(mods=[folds])
    numbers = {f"{name}/{view}": 0.5 for name in ("accuracy", "loss") for view in asked[1]}

    @foreign.evaluate()
    def _evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": TEST_SIZES[0], **numbers, **stated})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid.app = foreign
    with pytest.raises(RuntimeError, match=f"; client 0: .*{reason}"):
        transport.measure(2, *asked)


def test_a_greeting_without_a_shard_ends_the_run(
    grid: LocalGrid, settings: ClientSettings, model: State, tmp_path: Path
):
    elsewhere = replace(settings, shards=str(tmp_path))
    grid.app = make_client_app(lambda context: elsewhere)
    with pytest.raises(RuntimeError, match=r"a client cannot start: .*\.safetensors is missing"):
        transport_of(grid, model, Ledger(), timeout=0.5).greet(3)


def test_a_greeting_without_an_answer_ends_the_run(grid: LocalGrid, model: State):
    grid.silent = {1}
    with pytest.raises(
        RuntimeError, match="1 clients did not answer the server's first question in time"
    ):
        transport_of(grid, model, Ledger(), timeout=0.5).greet(3)


def test_nodes_that_never_join_end_the_run(grid: LocalGrid, model: State):
    with pytest.raises(RuntimeError, match=r"only 3 of 4 nodes joined within 0\.1 s"):
        transport_of(grid, model, Ledger(), timeout=0.1).greet(4)


def test_a_run_that_is_stopped_waits_for_nobody(grid: LocalGrid, model: State):
    grid.silent = {1}
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        transport_of(grid, model, Ledger(), timeout=3600, stop=stop).greet(3)


def test_two_nodes_with_the_same_shard_end_the_run(settings: ClientSettings, model: State):
    class Twins(LocalGrid):
        def get_node_ids(self) -> list[int]:
            return [100, 100]

    grid = Twins(make_client_app(lambda context: settings), 2)
    with pytest.raises(RuntimeError, match="two nodes hold the images of client 0"):
        transport_of(grid, model, Ledger(), timeout=0.5).greet(2)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ("1023456789", "client . has other classes than this run: class 0 is '0' there and '1'"),
        ("012345678x", "client . has other classes than this run: only there: '9'; .* run: 'x'"),
        ("012345678", "client . has other classes than this run: only there: '9'"),
    ],
    ids=["another order", "another class", "a class less"],
)
def test_a_client_with_other_classes_ends_the_run(
    grid: LocalGrid, model: State, names: str, says: str
):
    """Its node counts from another list, so that its head would learn other classes."""
    transport = transport_of(grid, model, Ledger(), timeout=1, class_names=tuple(names))
    with pytest.raises(UserError, match=says) as caught:
        transport.greet(len(SIZES))
    assert "--node-config 'classes=" in str(caught.value)


def test_clients_with_the_run_s_classes_are_welcome(
    grid: LocalGrid, model: State, settings: ClientSettings
):
    transport = transport_of(grid, model, Ledger(), timeout=1, class_names=settings.class_names)
    assert transport.greet(len(SIZES)) == dict(enumerate(SIZES))


@pytest.mark.parametrize("names", [None, [1, 2], "text"])
def test_a_greeting_without_names_of_classes_ends_the_run(
    grid: LocalGrid, model: State, names: Any
):
    foreign = ClientApp(mods=[folds])

    @foreign.query()
    def _greet(message: Message, context: Context) -> Message:
        content = RecordDict({"metrics": MetricRecord({"client": 0, "num-examples": 3})})
        if names is not None:
            content["config"] = ConfigRecord({"classes": names})
        return Message(content, reply_to=message)

    grid.app = foreign
    with pytest.raises(RuntimeError, match="does not list the names of the sender's classes"):
        transport_of(grid, model, Ledger(), timeout=1, class_names=("a",)).greet(1)
