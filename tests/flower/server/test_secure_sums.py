"""Secure sums in rounds of the real client app: what the strategy is given, and who fails."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, MetricRecord, RecordDict

import strategies
from fl_vitlora.communication.fixed_point import TAIL, pack_words
from fl_vitlora.communication.packing import HEADER as PACKED_HEADER
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.federation.aggregator import OwnAggregator
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundReport
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.federation.loop import Federation
from fl_vitlora.federation.training_round import RoundFailedError, TrainingRound
from fl_vitlora.finetuning import shelf
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.wire import masking, messages
from fl_vitlora.flower.wire.folding import fold, unfold
from fl_vitlora.flower.wire.reported_counts import Counts
from fl_vitlora.privacy.agreement import check_shares
from fl_vitlora.privacy.noise import mean_update
from fl_vitlora.privacy.secure_sum import Roster, Seeds
from fl_vitlora.state import State, l2_norm, scale, subtract
from fl_vitlora.strategy import ClientPlan, Strategy, Update
from tests.flower.callbacks import Callbacks
from tests.flower.client.test_context_state import Clients
from tests.flower.conftest import SIZES, both

SECURE: dict[str, Any] = {"privacy__secure_aggregation": True}


def make(folder: Path, name: str = "fedavg", *, equal: bool = False, **given: Any) -> Clients:
    strategy = strategies.load(name, {})
    assert isinstance(strategy, Strategy)
    limit = given.get("privacy__range", 4.0)
    sums = (
        SecureAggregator(limit=limit, equal=equal)
        if given.get("privacy__secure_aggregation")
        else None
    )
    return Clients(folder, strategy, sums=sums, **given)


def close(a: State, b: State, atol: float = 1e-6) -> bool:
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], atol=atol) for n in a)


def test_the_strategy_is_given_the_mean_that_open_updates_have(tmp_path: Path):
    hidden, seen = make(tmp_path, **SECURE), make(tmp_path / "open")
    (mean,) = hidden.train(1, hidden.initial)
    updates = seen.train(1, seen.initial)
    expected = mean_update(updates, [u.samples for u in updates])
    assert hidden.failures == []
    assert (mean.client, mean.members, mean.population) == (-1, 3, 3)
    assert (mean.samples, mean.steps) == (sum(SIZES), expected.steps)
    assert mean.loss == pytest.approx(expected.loss, abs=1e-6)
    assert close(mean.delta, expected.delta)


def test_a_masked_update_is_no_longer_than_an_open_one_and_shows_nothing_of_it(tmp_path: Path):
    """Beside the tensors it holds a mean loss and a count."""
    hidden = make(tmp_path, **SECURE)
    hidden.train(1, hidden.initial)
    replies = [unfold(message.content)[0] for message in hidden.grid.received]
    masked = [reply.array_records[messages.ARRAYS][messages.PACKED].data for reply in replies]
    scalars = sum(tensor.numel() for tensor in hidden.initial.values())
    assert all(len(data) <= PACKED_HEADER.size + 4 * (scalars + 4) for data in masked)
    values = torch.frombuffer(bytearray(masked[0][-4 * scalars :]), dtype=torch.int32).double()
    assert abs(float(values.mean())) < 6 * 2**31 / (3 * scalars) ** 0.5  # as of random words
    assert float(values.std()) == pytest.approx(2**32 / 12**0.5, rel=0.05)
    for reply in replies:
        assert messages.LOSS not in reply.metric_records[messages.METRICS]


def test_rounds_of_a_strategy_go_as_in_the_open(tmp_path: Path):
    """Alternating halves over three rounds; plain descent keeps the rounding small."""
    final = []
    for number, given in enumerate((SECURE, {})):
        clients = make(tmp_path / str(number), "rolora", **given)
        strategy = strategies.load("rolora", {})
        assert isinstance(strategy, Strategy)
        aggregator, model = OwnAggregator(strategy), GlobalModel(tensors=clients.initial)
        for server_round in (1, 2, 3):
            config = {SERVER_ROUND: server_round, LEARNING_RATE: 1e-2}
            asked = aggregator.instruct(server_round, model, (0, 1, 2), config)
            updates, failures = both(clients.transport.exchange(server_round, asked))
            assert failures == []
            model = aggregator.aggregate(server_round, model, updates, failures)
        final.append(model.tensors)
    moved = l2_norm(subtract(final[1], clients.initial))
    assert l2_norm(subtract(*final)) < 0.01 * moved


def test_what_scaffold_reports_is_summed_with_its_update(tmp_path: Path):
    hidden, seen = (make(tmp_path / n, "scaffold", **g) for n, g in (("a", SECURE), ("b", {})))
    (mean,) = hidden.train(1, hidden.initial)
    updates = seen.train(1, seen.initial)
    assert close(mean.report, mean_update(updates, [u.samples for u in updates]).report, atol=1e-5)


def test_who_drops_out_is_left_out_and_the_others_say_so(tmp_path: Path):
    hidden, seen = make(tmp_path, **SECURE), make(tmp_path / "open")
    app = hidden.grid.app

    def deaf_to_training(message: Any, context: Any) -> Any:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            raise RuntimeError("out of memory")
        return app(message, context)

    hidden.grid.app = deaf_to_training  # type: ignore[assignment]
    (mean,) = hidden.train(1, hidden.initial)
    updates = seen.train(1, seen.initial, 0, 2)
    assert [(f.client, f.reason) for f in hidden.failures] == [(1, "out of memory")]
    assert mean.members == 2
    assert close(mean.delta, mean_update(updates, [u.samples for u in updates]).delta)
    asked = [e for e in hidden.ledger if e.purpose == "revealing"]
    assert sorted((e.client, e.direction) for e in asked) == [
        (client, direction) for client in (0, 2) for direction in ("downlink", "uplink")
    ]


@pytest.mark.parametrize("quorum", [2, 3])
def test_each_member_of_a_sum_counts_towards_the_quorum(quorum: int, tmp_path: Path):
    """The server sees one update, the mean of two clients."""
    hidden = make(tmp_path, **SECURE)
    strategy = strategies.load("fedavg", {})
    assert isinstance(strategy, Strategy)
    reports: list[RoundReport] = []
    training = TrainingRound(
        transport=hidden.transport,
        aggregator=OwnAggregator(strategy),
        method=shelf.method_of(hidden.config.finetuning),
        clients=[0, 1, 2],
        rounds=1,
        fraction=1.0,
        quorum=quorum,
        seed=0,
        training=hidden.config.training,
        hooks=Callbacks(reports),
    )
    federation = Federation(training)
    hidden.grid.silent = {1}
    if quorum == 2:
        federation.run(GlobalModel(tensors=hidden.initial))
        assert [report.participants for report in reports] == [(0, 2)]
        return
    with pytest.raises(RoundFailedError, match=r"2 of 3 clients .* fewer than 3 .*; client 1: no"):
        federation.run(GlobalModel(tensors=hidden.initial))


def clipped_by_round(folder: Path, *, beside: bool) -> list[int | None]:
    """Plays two rounds; beside the next, the first model is measured after the second sum."""
    hidden = make(folder, **SECURE, privacy__range=1e-3)
    strategy = strategies.load("fedavg", {})
    assert isinstance(strategy, Strategy)
    reports: list[RoundReport] = []
    second = threading.Event()

    def measure(number: int, model: GlobalModel) -> tuple[float, float]:
        assert not beside or number == 2 or second.wait(300)
        return 0.5, 2.0

    def release(number: int, updates: Sequence[Update], cohort: int) -> Sequence[Update]:
        if number == 2:
            second.set()
        return updates

    training = TrainingRound(
        transport=hidden.transport,
        aggregator=OwnAggregator(strategy),
        method=shelf.method_of(hidden.config.finetuning),
        clients=[0, 1, 2],
        rounds=2,
        fraction=1.0,
        seed=0,
        training=hidden.config.training,
        hooks=Callbacks(reports, evaluate=measure, release=release, beside=beside),
    )
    Federation(training).run(GlobalModel(tensors=hidden.initial))
    return [report.clipped for report in reports]


def test_the_clipped_scalars_of_a_round_are_told_with_it_however_late_it_is_measured(
    tmp_path: Path,
):
    late = clipped_by_round(tmp_path / "late", beside=True)
    assert late == clipped_by_round(tmp_path / "at once", beside=False)
    assert late[0] != late[1]  # otherwise nothing would be shown


def test_a_sum_of_one_is_refused(tmp_path: Path):
    hidden = make(tmp_path, **SECURE)
    hidden.grid.silent = {0, 1}
    assert hidden.train(1, hidden.initial) == []
    reasons = {failure.client: failure.reason for failure in hidden.failures}
    assert reasons[0] == reasons[1] == "no reply within 1 s"
    assert "a secure sum needs at least two remaining clients" in reasons[2]


def test_no_client_sends_anything_in_the_open_if_it_was_told_to_hide(tmp_path: Path):
    """A server that leaves the roster out gets nothing."""
    hidden = Clients(tmp_path, None, **SECURE)
    assert hidden.train(1, hidden.initial) == []
    assert all(
        "its record of the secure sum is missing" in failure.reason for failure in hidden.failures
    )


def test_clients_bound_what_they_send(tmp_path: Path):
    bounded, free = make(tmp_path, privacy__clipping_norm=0.05), make(tmp_path / "free")
    for update, whole in zip(
        bounded.train(1, bounded.initial), free.train(1, free.initial), strict=True
    ):
        factor = 0.05 / l2_norm(whole.delta)
        assert factor < 1
        assert l2_norm(update.delta) == pytest.approx(0.05, rel=1e-4)
        assert close(update.delta, {n: t * factor for n, t in whole.delta.items()})


def test_a_hostile_client_does_not_clip(tmp_path: Path):
    hostile: dict[str, Any] = {
        "attack__kinds": ["scale"],
        "attack__clients": 1,
        "attack__factor": 100.0,
    }
    clients = make(tmp_path, privacy__clipping_norm=0.05, **hostile)
    norms = sorted(l2_norm(update.delta) for update in clients.train(1, clients.initial))
    assert norms == pytest.approx([0.05, 0.05, 5.0], rel=1e-3)


def test_who_weighs_the_same_does_so_in_a_sum_too(tmp_path: Path):
    given: dict[str, Any] = {**SECURE, "privacy__clipping_norm": 0.05}
    hidden = make(tmp_path, equal=True, **given)
    seen = make(tmp_path / "open", privacy__clipping_norm=0.05)
    (mean,) = hidden.train(1, hidden.initial)
    assert close(mean.delta, mean_update(seen.train(1, seen.initial), [1.0] * 3).delta)


def test_a_plan_rests_tensors_in_a_sum_too(tmp_path: Path):
    hidden = make(tmp_path, **SECURE)
    (mean,) = hidden.train(1, hidden.initial, plan=ClientPlan(frozen=(".lora_A",)))
    assert not any(name.endswith(".lora_A") for name in mean.delta)
    assert any(name.endswith(".lora_B") for name in mean.delta)


def told_wrongly(grid: Any, change: Any) -> Any:
    """A grid whose second client answers training as `change` makes of it."""
    app = grid.app

    def answer(message: Any, context: Any) -> Any:
        reply = app(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 1:
            content, _, _ = unfold(reply.content)
            change(content)
            reply.content = fold(content, {}, {})
        return reply

    grid.app = answer
    return grid


@pytest.mark.parametrize("record", [messages.METRICS, messages.ARRAYS])
def test_a_client_that_answers_wrongly_is_left_out_of_the_sum(record: str, tmp_path: Path):
    hidden = make(tmp_path, **SECURE)
    told_wrongly(hidden.grid, lambda content: content.pop(record))
    (mean,) = hidden.train(1, hidden.initial)
    assert mean.members == 2
    assert [failure.client for failure in hidden.failures] == [1]


def test_numbers_of_images_are_those_of_the_greeting(tmp_path: Path):
    hidden = make(tmp_path, **SECURE)

    def lie(content: Any) -> None:
        content[messages.METRICS][messages.SAMPLES] = 10_000

    told_wrongly(hidden.grid, lie)
    (mean,) = hidden.train(1, hidden.initial)
    assert mean.samples == SIZES[0] + SIZES[2]
    assert [(f.client, f.reason) for f in hidden.failures] == [
        (1, "it reports 10000 images, but its first message reported 12")
    ]


@pytest.mark.parametrize("steps", [0, 5, 2**62, 6.5])
def test_other_steps_than_the_plan_has_are_refused_in_a_sum(steps: float, tmp_path: Path):
    hidden = make(tmp_path, **SECURE)

    def lie(content: Any) -> None:
        content[messages.METRICS][messages.STEPS] = steps

    told_wrongly(hidden.grid, lie)
    (mean,) = hidden.train(1, hidden.initial)
    assert mean.members == 2
    assert [failure.client for failure in hidden.failures] == [1]


def test_no_client_of_a_sum_has_more_than_the_largest_share_even_after_others_have_left():
    sums = SecureAggregator(limit=4.0, equal=False, most=0.4)
    for client in range(4):
        context = Context(1, client, {}, RecordDict(), {})
        sums.greeted(client, RecordDict({masking.RECORD: masking.introduce(context, client)}))
    for images in ({0: 40, 1: 40, 2: 60, 3: 60}, {0: 40, 1: 40, 2: 60}):
        roster = sums.roster(1, images)
        check_shares(roster, 0.4)
        assert max(member.share for member in roster.members) <= 0.4


def test_a_refused_reply_is_deleted_before_anybody_is_asked_for_its_seeds(tmp_path: Path):
    """With the seeds its masked words could be read; nothing refers to them any more by then."""
    hidden = make(tmp_path, **SECURE)
    sums, sizes = SecureAggregator(limit=4.0, equal=False), dict(enumerate(SIZES))
    for client in sizes:
        context = Context(1, client, {}, RecordDict(), {})
        sums.greeted(client, RecordDict({masking.RECORD: masking.introduce(context, client)}))
    roster, layout = sums.roster(1, sizes), hidden.worker.layout
    words = np.zeros(layout.scalars + TAIL, np.uint32)

    def reply(steps: int) -> RecordDict:
        data = pack_words(words, layout)
        array = Array("uint8", (len(data),), masking.MASKED_TYPE, data)
        metrics = MetricRecord({messages.STEPS: steps})
        return RecordDict(
            {messages.ARRAYS: ArrayRecord({messages.PACKED: array}), messages.METRICS: metrics}
        )

    replies = {0: reply(10), 1: reply(99), 2: reply(4)}
    traces = {client: weakref.ref(content) for client, content in replies.items()}
    asked = []

    def ask(roster: Roster, left: frozenset[int], dropped: frozenset[int]) -> dict[int, Seeds]:
        gc.collect()
        asked.append((set(left), set(dropped)))
        assert all(traces[client]() is None for client in dropped)
        return {}  # nobody answers: then nobody is left either

    training = hidden.settings.config.training
    expected = {client: Counts.of(images, training) for client, images in sizes.items()}
    summed = sums.add_up(roster, replies, layout, ask, images=sizes, expected=expected)
    updates, failures = list(summed.updates), summed.failures
    assert (updates, asked) == ([], [({0, 2}, {1})])
    assert "reports 99 steps, but its 12 images need 6" in failures[1]


def two_sums(folder: Path, *, fresh: bool) -> float:
    """Sums one round twice, the second time in a run of its own and without client 1.

    Returns:
        How far the difference of the sums is from client 1's update, over the length of that.
    """
    found: list[dict[str, float | State]] = []
    folder.mkdir()
    for number in range(2):
        hidden = make(folder / str(number), **SECURE)
        hidden.settings = replace(hidden.settings, fresh_order=fresh)
        hidden.grid.silent = {1} if number else set()
        (mean,) = hidden.train(1, hidden.initial)
        found.append({"images": float(mean.samples), "delta": mean.delta})
    sums = [scale(one["delta"], one["images"]) for one in found]  # type: ignore[arg-type]
    apart = scale(subtract(*sums), 1 / SIZES[1])
    seen = make(folder / "seen")
    (own,) = seen.train(1, seen.initial, 1)
    return l2_norm(subtract(apart, own.delta)) / l2_norm(own.delta)


def test_two_sums_of_a_round_betray_a_member_only_where_the_order_of_images_repeats(
    tmp_path: Path,
):
    assert two_sums(tmp_path / "repeats", fresh=False) < 1e-5
    assert two_sums(tmp_path / "fresh", fresh=True) > 0.05


def test_what_was_clipped_to_the_range_is_counted(tmp_path: Path):
    hidden = Clients(
        tmp_path,
        None,
        sums=SecureAggregator(limit=1e-3, equal=False),
        **SECURE,
        privacy__range=1e-3,
    )
    hidden.train(1, hidden.initial)
    assert hidden.clipped is not None
    assert hidden.clipped > 100


def test_a_client_of_sums_evaluates_no_single_images(tmp_path: Path):
    """The losses of some models on one image would reveal gradients of this image."""
    hidden, seen = make(tmp_path / "hidden", **SECURE), make(tmp_path / "open")
    model = GlobalModel(tensors=hidden.initial)
    assert seen.transport.measure(1, model, [RIGHT_KEY], most=3)
    assert hidden.transport.measure(1, model, [RIGHT_KEY])
    with pytest.raises(RuntimeError, match="images, expected all images"):
        hidden.transport.measure(1, model, [RIGHT_KEY], most=3)
