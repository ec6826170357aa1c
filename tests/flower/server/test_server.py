"""The server loop: chosen participants, quorum of one, and no round that quietly means nothing."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import strategies
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import TrainingConfig
from fl_vitlora.errors import UserError
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundReport
from fl_vitlora.federation.loop import Federation
from fl_vitlora.federation.training_round import DivergedError, RoundFailedError, TrainingRound
from fl_vitlora.finetuning import shelf
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated, Part
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.strategies.aggregators import client_half, make_aggregator
from fl_vitlora.population.sampling import cohort_size, sample
from fl_vitlora.state import State, add, l2_norm, mean, scale, subtract
from fl_vitlora.strategy import RoundResult, Strategy, Update
from strategies.fedavg import FedAvg
from tests.flower.callbacks import Callbacks
from tests.flower.conftest import SIZES, LocalGrid, transport_of


@given(
    clients=st.integers(1, 60),
    fraction=st.floats(0, 1, exclude_min=True),
    seed=st.integers(0, 9),
    server_round=st.integers(1, 9),
)
def test_a_sample_is_sorted_without_repetition_and_of_its_size(
    clients: int, fraction: float, seed: int, server_round: int
):
    chosen = sample(range(clients), fraction, seed, server_round)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(range(clients))
    assert len(chosen) == cohort_size(clients, fraction)
    assert chosen == sample(range(clients), fraction, seed, server_round)


@pytest.mark.parametrize(
    ("clients", "fraction", "participants"),
    [(20, 1.0, 20), (20, 0.15, 3), (20, 0.151, 4), (10, 0.3, 3), (7, 0.01, 1), (1, 0.5, 1)],
)
def test_a_fraction_is_rounded_up(clients: int, fraction: float, participants: int):
    assert cohort_size(clients, fraction) == participants


@pytest.mark.parametrize("clients", [1, 20, 1000])
@pytest.mark.parametrize("fraction", [1e-12, 1e-9, 1e-4])
def test_a_round_has_at_least_one_participant(clients: int, fraction: float):
    assert cohort_size(clients, fraction) == 1


def test_every_client_is_chosen_about_equally_often():
    chosen = Counter(c for r in range(400) for c in sample(range(10), 0.3, 0, r))
    assert sum(chosen.values()) == 1200
    assert all(90 < count < 150 for count in chosen.values())  # 120 each, 4 standard deviations


class Loop:
    """A federation of the three local clients, and what it reported."""

    def __init__(self, grid: LocalGrid, settings: ClientSettings, strategy: Any, **given: Any):
        torch.manual_seed(0)
        shapes = workspace(settings).layout.shapes
        self.start: State = {name: 0.05 * torch.randn(shape) for name, shape in shapes}
        self.reports: list[RoundReport] = []
        self.asked: list[int] = []
        self.evaluated: list[State] = []
        transport = transport_of(grid, self.start, Ledger(), config=settings.config, timeout=1)
        training = TrainingConfig(learning_rate=1e-3)
        own = {name: given.pop(name) for name in ("beside", "note") if name in given}
        options: dict[str, Any] = {
            "rounds": 2,
            "fraction": 1.0,
            "seed": 0,
            "training": training,
            **given,
        }
        training_round = TrainingRound(
            transport=transport,
            aggregator=make_aggregator(strategy, Layout.of(self.start), 0),
            method=shelf.method_of(settings.config.finetuning),
            clients=list(transport.greet(len(SIZES))),
            hooks=Callbacks(self.reports, evaluate=self._evaluate, **own),
            **options,
        )
        self.federation = Federation(training_round)

    def run(self) -> State:
        return self.federation.run(GlobalModel(tensors=self.start)).tensors

    def _evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float]:
        self.asked.append(server_round)
        self.evaluated.append(model.tensors)
        return 0.5, 2.0


def test_rounds_are_reported_as_they_end(grid: LocalGrid, settings: ClientSettings):
    loop = Loop(grid, settings, strategies.load("fedavg", {}))
    final = loop.run()
    assert [report.round for report in loop.reports] == [1, 2]
    assert [report.participants for report in loop.reports] == [(0, 1, 2)] * 2
    assert all((r.accuracy, r.loss, r.failures) == (0.5, 2.0, ()) for r in loop.reports)
    assert loop.asked == [1, 2]
    assert loop.evaluated[-1] is final


@pytest.mark.parametrize("beside", [False, True])
def test_measuring_beside_the_next_round_changes_nothing(
    grid: LocalGrid, settings: ClientSettings, *, beside: bool
):
    loop = Loop(grid, settings, strategies.load("fedavg", {}), rounds=3, beside=beside)
    final = loop.run()
    alone = Loop(grid, settings, strategies.load("fedavg", {}), rounds=3)
    assert all(torch.equal(tensor, final[name]) for name, tensor in alone.run().items())
    assert [report.round for report in loop.reports] == loop.asked == [1, 2, 3]
    assert all(math.isfinite(report.seconds) for report in loop.reports)
    assert all(report.accuracy == 0.5 for report in loop.reports)


class Stopping(FedAvg):
    """FedAvg that ends the run with its second round, and notes what it is asked."""

    heard: ClassVar[list[tuple[int, RoundResult]]] = []

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        self.heard.append((server_round, result))
        return server_round >= 2


@pytest.mark.parametrize("beside", [False, True])
def test_a_strategy_ends_the_run_with_a_measured_round(
    grid: LocalGrid, settings: ClientSettings, monkeypatch: pytest.MonkeyPatch, *, beside: bool
):
    monkeypatch.setattr(Stopping, "heard", [])
    loop = Loop(grid, settings, Stopping(), rounds=5, beside=beside)
    final = loop.run()
    assert [report.round for report in loop.reports] == loop.asked == [1, 2]
    longer = Loop(grid, settings, FedAvg(), rounds=5)
    longer.run()
    assert all(torch.equal(tensor, final[name]) for name, tensor in longer.evaluated[1].items())
    assert [server_round for server_round, _ in Stopping.heard] == [1, 2]
    for (_, result), report in zip(Stopping.heard, loop.reports, strict=True):
        assert vars(result) == {name: getattr(report, name) for name in vars(result)}


@pytest.mark.parametrize("beside", [False, True])
def test_a_round_that_is_not_measured_has_no_accuracy_and_nobody_stops_by_it(
    grid: LocalGrid, settings: ClientSettings, monkeypatch: pytest.MonkeyPatch, *, beside: bool
):
    """The strategy would stop after round 2; it is asked after the rounds 3 and 6 alone."""
    monkeypatch.setattr(Stopping, "heard", [])
    loop = Loop(grid, settings, Stopping(), rounds=6, beside=beside)
    third: Any = lambda number, model: None if number % 3 else (0.25, 1.0)  # noqa: E731
    loop.federation.hooks.evaluate = third  # type: ignore[method-assign]
    loop.run()
    assert [report.round for report in loop.reports] == [1, 2, 3]
    assert [(r.accuracy, r.loss) for r in loop.reports] == [(None, None), (None, None), (0.25, 1.0)]
    assert [number for number, _ in Stopping.heard] == [3]


@pytest.mark.parametrize("beside", [False, True])
def test_a_run_gives_up_after_a_measured_round_and_keeps_its_state(
    grid: LocalGrid, settings: ClientSettings, *, beside: bool
):
    kept, stopped = [], []

    def keep(server_round: int, model: GlobalModel) -> Any:
        return lambda: kept.append(server_round)

    loop = Loop(grid, settings, FedAvg(), rounds=6, beside=beside)
    hooks: Any = loop.federation.hooks
    hooks.may_give_up, hooks.keep = True, keep
    hooks.gives_up = lambda server_round: server_round >= 2
    hooks.stop = lambda server_round, reason: stopped.append((server_round, reason))
    loop.run()
    assert [report.round for report in loop.reports] == [1, 2]
    assert kept == [1, 2, 2]
    assert stopped == [(2, "patience")]


def test_a_run_that_goes_on_after_its_last_round_ends_at_once(
    grid: LocalGrid, settings: ClientSettings
):
    loop = Loop(grid, settings, Stopping(), rounds=5)
    start = GlobalModel(tensors=loop.start)
    last = RoundResult(accuracy=0.5, loss=2.0, train_loss=1.0, participants=(0,))
    assert loop.federation.run(start, 2, last) is start
    assert loop.reports == []


def test_an_answer_that_is_neither_yes_nor_no_is_refused(grid: LocalGrid, settings: ClientSettings):
    class Vague(FedAvg):
        def should_stop(self, server_round: int, result: RoundResult) -> bool:
            return "perhaps"  # type: ignore[return-value]

    with pytest.raises(UserError, match="should_stop returned 'perhaps', expected True or False"):
        Loop(grid, settings, Vague(), rounds=3).run()


def test_the_next_round_goes_on_while_a_model_is_measured(
    grid: LocalGrid, settings: ClientSettings, monkeypatch: pytest.MonkeyPatch
):
    """The first measurement waits for the second round's instructions."""
    loop = Loop(grid, settings, strategies.load("fedavg", {}), rounds=2, beside=True)
    begun, measure = threading.Event(), loop._evaluate
    aggregator = loop.federation.each_round.aggregator
    instruct = aggregator.instruct

    def instructing(server_round: int, *given: Any) -> Any:
        if server_round == 2:
            begun.set()
        return instruct(server_round, *given)

    def waiting(server_round: int, model: GlobalModel) -> tuple[float, float]:
        assert begun.wait(timeout=300)
        return measure(server_round, model)

    loop.federation.hooks.evaluate = waiting  # type: ignore[method-assign]
    monkeypatch.setattr(aggregator, "instruct", instructing)
    loop.run()
    assert loop.asked == [1, 2]


def test_what_goes_wrong_while_measuring_ends_the_run(grid: LocalGrid, settings: ClientSettings):
    loop = Loop(grid, settings, strategies.load("fedavg", {}), rounds=5, beside=True)

    def failing(server_round: int, model: GlobalModel) -> tuple[float, float]:
        raise RuntimeError(f"no test images in round {server_round}")

    loop.federation.hooks.evaluate = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no test images in round 1"):
        loop.run()
    assert loop.reports == []


def test_a_run_can_be_repeated_bit_by_bit(grid: LocalGrid, settings: ClientSettings):
    first, second = (
        Loop(grid, settings, strategies.load("fedavg", {}), fraction=0.5).run() for _ in range(2)
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())


def test_the_training_loss_is_weighted_by_images(grid: LocalGrid, settings: ClientSettings):
    class Listening(Strategy):
        heard: list[Update] = []  # noqa: RUF012 - a test listens

        def aggregate(
            self, model: State, updates: Sequence[Update], state: State
        ) -> tuple[State, State]:
            self.heard.extend(updates)
            return add(model, mean([u.delta for u in updates], [1] * len(updates))), state

    loop = Loop(grid, settings, Listening(), rounds=1)
    loop.run()
    slow = sum(u.loss * size for u, size in zip(Listening.heard, SIZES, strict=True)) / sum(SIZES)
    assert loop.reports[0].train_loss == pytest.approx(slow)


def test_the_error_of_averaging_factors_is_told_round_by_round(
    grid: LocalGrid, settings: ClientSettings
):
    loop = Loop(grid, settings, strategies.load("fedavg", {}))
    loop.run()
    assert all(0 < (report.aggregation_error or 0) < 1 for report in loop.reports)
    grid.silent = {0, 1}
    loop.run()
    assert [r.aggregation_error for r in loop.reports[2:]] == pytest.approx([0, 0], abs=1e-6)


def test_what_a_round_merges_into_frozen_weights_is_no_error(
    grid: LocalGrid, settings: ClientSettings
):
    """In the second round, only what that round merged counts, not the first one's."""
    loop = Loop(grid, settings, strategies.load("fedex_lora", {}))
    loop.run()
    assert [r.aggregation_error for r in loop.reports] == pytest.approx([0, 0], abs=1e-5)


def test_one_client_is_enough_and_the_others_are_reported(
    grid: LocalGrid, settings: ClientSettings
):
    loop = Loop(grid, settings, strategies.load("fedavg", {}))
    grid.silent = {0, 1}
    loop.run()
    assert [report.participants for report in loop.reports] == [(2,)] * 2
    assert [[f.client for f in report.failures] for report in loop.reports] == [[0, 1]] * 2


def test_a_round_without_updates_ends_the_run(grid: LocalGrid, settings: ClientSettings):
    loop = Loop(grid, settings, strategies.load("fedavg", {}))
    grid.silent = {0, 1, 2}
    with pytest.raises(RoundFailedError) as caught:
        loop.run()
    assert not isinstance(caught.value, DivergedError)
    late = "no reply within 1 s"
    assert str(caught.value) == (
        "round 1: 0 of 3 clients sent a usable update, fewer than 1 (min_clients); "
        f"client 0: {late}; client 1: {late}; client 2: {late}"
    )
    assert loop.reports == []


@pytest.mark.parametrize("quorum", [1, 2, 3])
def test_a_round_below_the_quorum_ends_the_run(
    grid: LocalGrid, settings: ClientSettings, quorum: int
):
    noted: list[Failure] = []
    fedavg = strategies.load("fedavg", {})
    loop = Loop(grid, settings, fedavg, quorum=quorum, note=noted.extend)
    grid.silent = {1}
    if quorum <= 2:
        loop.run()
        assert [report.participants for report in loop.reports] == [(0, 2)] * 2
        return
    with pytest.raises(
        RoundFailedError, match=r"round 1: 2 of 3 clients .* fewer than 3 .*t 1: no"
    ):
        loop.run()
    assert loop.reports == []
    assert [(failed.round, failed.client) for failed in noted] == [(1, 1)]


def test_an_aggregate_that_is_not_a_number_ends_the_run(grid: LocalGrid, settings: ClientSettings):
    class Exploding(Strategy):
        def aggregate(
            self, model: State, updates: Sequence[Update], state: State
        ) -> tuple[State, State]:
            return scale(model, float("inf")), state

    with pytest.raises(DivergedError, match="round 1: the aggregated model contains NaN"):
        Loop(grid, settings, Exploding()).run()


def test_a_round_that_leaves_the_model_as_it_was_is_reported(
    grid: LocalGrid, settings: ClientSettings
):
    """Bulyan wants seven clients if one is malicious."""
    bulyan = strategies.load("flwr.serverapp.strategy:Bulyan", {"num_malicious_nodes": 1})
    idle, busy = (Loop(grid, settings, s) for s in (bulyan, strategies.load("fedavg", {})))
    final = idle.run()
    busy.run()
    assert all(torch.equal(final[name], tensor) for name, tensor in idle.start.items())
    assert [report.moved for report in (*idle.reports, *busy.reports)] == [False] * 2 + [True] * 2


@pytest.fixture
def descent(grid: LocalGrid, settings: ClientSettings) -> ClientSettings:
    """Clients that descend without AdamW, which makes whole steps of rounding."""
    training = replace(settings.config.training, optimizer="sgd")
    plain = replace(settings, config=replace(settings.config, training=training))
    grid.app = make_client_app(lambda context: plain)
    return plain


FAST = TrainingConfig(learning_rate=0.05)


def test_the_penalty_of_flowers_fedprox_is_applied_as_ours_is(
    grid: LocalGrid, descent: ClientSettings
):
    finals = []
    for name, options in (
        ("fedprox", {"mu": 10.0}),
        ("flwr.serverapp.strategy:FedProx", {"proximal_mu": 10.0}),
        ("flwr.serverapp.strategy:FedAvg", {}),
    ):
        strategy = strategies.load(name, options)
        own = replace(descent, strategy=client_half(strategy))  # ours is applied by its own code
        grid.app = make_client_app(lambda context, own=own: own)  # type: ignore[misc]
        finals.append(Loop(grid, own, strategy, training=FAST).run())
    ours, theirs, free = finals
    held, loose = (l2_norm(subtract(theirs, other)) for other in (ours, free))
    assert held < 1e-5
    assert loose > 1e-3


def test_a_flower_strategy_drives_the_same_loop(grid: LocalGrid, descent: ClientSettings):
    ours, theirs = (
        Loop(grid, descent, strategies.load(name, {}), training=FAST).run()
        for name in ("fedavg", "flwr.serverapp.strategy:FedAvg")
    )
    assert all(torch.allclose(theirs[n], t, atol=1e-5) for n, t in ours.items())


@dataclass(frozen=True, kw_only=True)
class Nudging(Part):
    """A part whose server moves tensors after the aggregation."""

    def trained(self, model: nn.Module) -> Collection[str]:
        return ()

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        moved = {n: t + 1 for n, t in known.after.items() if n.endswith(".lora_B")}
        return moved, dict(memory)


def test_the_aggregation_error_does_not_count_what_the_method_changes_afterwards(
    grid: LocalGrid, settings: ClientSettings
):
    errors = []
    for parts in ((), (("nudging", Nudging()),)):
        loop = Loop(grid, settings, strategies.load("fedavg", {}), rounds=1)
        training = loop.federation.each_round
        training = replace(training, method=Method(name="method", parts=parts))
        model, report = training.run(1, GlobalModel(tensors=loop.start))
        errors.append(report.aggregation_error)
        assert any(bool((t > 0.5).any()) for t in model.tensors.values()) == bool(parts)
    assert errors[0] == errors[1] is not None
