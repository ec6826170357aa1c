"""Strategies of Flower: their metrics are used, and what nobody would call is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import flwr.serverapp.strategy as flower
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

import strategies
from fl_vitlora.config import Config, EvaluationConfig
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.errors import UserError
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.flower.strategies.aggregators import check_experiment
from fl_vitlora.flower.strategies.checking import flower_findings, flower_understood
from fl_vitlora.flower.wire import messages
from tests.flower.played import (
    CLIENTS,
    CONFIG,
    FLOWER,
    GLOBAL,
    aggregator_of,
    answer,
    load,
)


def total(contents: list[RecordDict], weight: str) -> MetricRecord:
    del weight
    seen: list[Any] = [record for one in contents for record in one.metric_records.values()]
    return MetricRecord({name: sum(one[name] for one in seen) for name in sorted(seen[0])})


class Loud(flower.FedAvg):
    """Has methods that a run calls, and some that it does not."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.helper()
        return super().aggregate_train(server_round, replies)

    def helper(self) -> None:
        """Is called by this class."""

    def on_round_end(self) -> None:
        """Is called by nobody."""

    def start(self, *args: Any, **kwargs: Any) -> Any:
        """Is Flower's loop, which is not used here."""
        return super().start(*args, **kwargs)


class Chooses(flower.FedAvg):
    """Evaluates on the first client alone."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return list(super().configure_evaluate(server_round, arrays, config, grid))[:1]


class AsksInEvaluation(flower.FedAvg):
    """Sends a key for the evaluation, which no client reads."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return super().configure_evaluate(
            server_round, arrays, ConfigRecord({**config, "topk": 5}), grid
        )


class NeverTheSame(flower.FedAvg):
    """Keeps count in its class, so that no two instances are alike."""

    count = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        NeverTheSame.count += 1
        if arrays is not None:
            name, first = next(iter(arrays.items()))
            arrays[name] = type(first)(first.numpy() + NeverTheSame.count)
        return arrays, metrics


def maker(name: str) -> Callable[[], flower.Strategy]:
    def make() -> flower.Strategy:
        made = strategies.load(name, {}, cohort=len(CLIENTS), clients=len(CLIENTS))
        assert isinstance(made, flower.Strategy)
        return made

    return make


def broken(name: str) -> dict[str, str]:
    found = flower_findings(maker(f"tests.flower.strategies.test_checking:{name}"))
    return {rule: problem for rule, problem in found if problem is not None}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if number % 4 else [])
        for number, name in enumerate(FLOWER)  # each fourth one in the first tier
    ],
)
def test_every_strategy_of_flower_passes(name: str):
    assert [one for one in flower_findings(lambda: load(name)) if one.problem] == []


def test_public_methods_that_nobody_calls_are_named():
    told = flower_understood(Loud())
    assert told[0] == "a strategy of Flower; replaces: aggregate_train"
    assert told[1] == "never called: on_round_end"
    (problem,) = broken("Loud").values()
    assert "start is never called" in problem


def test_a_strategy_that_cannot_be_repeated_is_found_out():
    assert any("another model the second time" in told for told in broken("NeverTheSame").values())


def test_a_key_of_the_evaluation_that_no_client_reads_is_refused_by_name():
    (problem,) = broken("AsksInEvaluation").values()
    assert "'topk'" in problem


def test_what_a_strategy_makes_of_training_metrics_is_kept():
    aggregator = aggregator_of(flower.FedAvg(train_metrics_aggr_fn=total))
    updates = answer(1, aggregator.instruct(1, GLOBAL, CLIENTS, CONFIG))
    aggregator.aggregate(1, GLOBAL, updates, [])
    assert aggregator.metrics() == {
        messages.SAMPLES: sum(update.samples for update in updates),
        messages.STEPS: sum(update.steps for update in updates),
        messages.LOSS: sum(update.loss for update in updates),
    }


def test_what_a_strategy_makes_of_the_clients_accuracies_is_kept():
    answers = [Answer(c, images, {RIGHT_KEY: (0.25 * c, 1.0)}) for c, images in enumerate((30, 10))]
    mean = aggregator_of(flower.FedAvg()).evaluated(1, GLOBAL, answers)
    assert mean[messages.ACCURACY] == pytest.approx(0.25 * 10 / 40)
    summed = aggregator_of(flower.FedAvg(evaluate_metrics_aggr_fn=total))
    assert summed.evaluated(1, GLOBAL, answers)[messages.SAMPLES] == 40
    chosen = aggregator_of(Chooses()).evaluated(1, GLOBAL, answers)
    assert chosen[messages.ACCURACY] in (0.0, 0.25)


@pytest.mark.parametrize("strategy", [Chooses(), flower.FedAvg(evaluate_metrics_aggr_fn=total)])
def test_an_evaluation_of_its_own_needs_clients_that_evaluate(strategy: flower.Strategy):
    with pytest.raises(UserError, match=r"evaluation\.by=clients"):
        check_experiment(strategy, Config(clients=4))
    check_experiment(strategy, Config(clients=4, evaluation=EvaluationConfig(by="clients")))
    check_experiment(flower.FedAvg(), Config(clients=4))
