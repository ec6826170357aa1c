"""Flower's strategies run unmodified: what they are shown, draw, count and remember."""

from __future__ import annotations

import gc
import json
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from safetensors.torch import load_file, save_file

import strategies
from fl_vitlora.communication.packing import Layout
from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.failures import Failure
from fl_vitlora.flower.strategies.aggregators import check_storable
from fl_vitlora.flower.strategies.flower_aggregator import Participants
from fl_vitlora.flower.wire import messages
from fl_vitlora.state import State, clip_norm, clone, is_finite, l2_norm, mean, subtract
from fl_vitlora.strategy import RoundResult
from tests.flower.played import (
    ADAPTIVE,
    CLIENTS,
    CONFIG,
    FIXED,
    FLOWER,
    GLOBAL,
    LAYOUT,
    MODEL,
    NORM,
    PLAIN,
    aggregator_of,
    load,
    made_up,
    play,
    same,
)


@pytest.fixture(autouse=True)
def _little_garbage() -> Iterator[None]:
    """Some of Flower's strategies collect garbage for every client; leave them little to see."""
    gc.freeze()
    yield
    gc.unfreeze()


def moved(strategy: flower.Strategy, rounds: int = 1) -> State:
    return subtract(play(aggregator_of(strategy), rounds), MODEL)


def near(a: State, b: State) -> bool:
    return all(torch.allclose(a[name], tensor, atol=1e-6) for name, tensor in b.items())


def test_these_are_all_that_flower_has_but_for_trees():
    known = {
        name
        for name, kind in vars(flower).items()
        if isinstance(kind, type) and issubclass(kind, flower.Strategy) and "Xgb" not in name
    }
    assert known - {"Strategy"} == set(FLOWER)
    assert len(FLOWER) == 16


@pytest.mark.parametrize("name", FLOWER)
def test_strategies_of_flower_run_unmodified(name: str):
    before = clone(MODEL)
    model = play(aggregator_of(load(name)))
    assert Layout.of(model) == LAYOUT
    assert is_finite(model)
    assert l2_norm(subtract(model, MODEL)) > 0.1
    assert all(tensor.dtype == torch.float32 for tensor in model.values())
    assert all(torch.equal(before[n], tensor) for n, tensor in MODEL.items())


@pytest.mark.parametrize("name", FLOWER)
def test_their_runs_can_be_repeated(name: str):
    random.seed(1)
    np.random.seed(1)
    first = play(aggregator_of(load(name)))
    random.seed(2)
    np.random.seed(2)
    assert same(play(aggregator_of(load(name))), first)


def test_what_a_strategy_draws_is_taken_from_nobody_else():
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), np.random.normal()
    random.seed(1)
    np.random.seed(1)
    for name in (*FIXED, *ADAPTIVE):
        play(aggregator_of(load(name)))
    assert (random.random(), np.random.normal()) == expected


@pytest.mark.parametrize("name", [*FIXED, *ADAPTIVE])
def test_each_seed_and_each_round_has_noise_of_its_own(name: str):
    def noise(seed: int, server_round: int) -> State:
        played = [
            play(aggregator_of(strategy, seed), server_round, first=server_round)
            for strategy in (load(name), load(name, noise_multiplier=0.0))
        ]
        return subtract(*played)

    one, other_seed, other_round = noise(0, 1), noise(1, 1), noise(0, 2)
    assert l2_norm(one) > 0.1
    assert min(l2_norm(subtract(one, other)) for other in (other_seed, other_round)) > 0.1


@pytest.mark.parametrize("name", FLOWER)
def test_every_participant_is_sent_model_rate_and_round(name: str):
    sent = aggregator_of(load(name)).instruct(1, GLOBAL, CLIENTS, CONFIG)
    assert [instruction.client for instruction in sent] == CLIENTS
    for instruction in sent:
        assert instruction.config.items() >= CONFIG.items()
        assert all(torch.equal(instruction.model.tensors[n], t) for n, t in MODEL.items())
    assert len({id(instruction.model) for instruction in sent}) == 1  # packed once for all


def test_a_median_is_the_median_of_the_clients():
    for name, tensor in moved(load("FedMedian")).items():
        deltas = torch.stack([update.delta[name] for update in made_up(1)]).sort(dim=0).values
        assert torch.allclose(tensor, (deltas[1] + deltas[2]) / 2, atol=1e-6)


def test_krum_takes_the_model_of_one_client():
    step = moved(load("Krum"))
    distances = [l2_norm(subtract(step, update.delta)) for update in made_up(1)]
    assert sorted(distance < 1e-5 for distance in distances) == [False] * 3 + [True]


class Recording(flower.FedAvg):
    """FedAvg that keeps the replies it was given."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.replies = list(replies)
        return super().aggregate_train(server_round, self.replies)


def test_failures_are_passed_on_and_left_out():
    strategy = Recording(fraction_evaluate=0.0)
    aggregator = aggregator_of(strategy)
    aggregator.instruct(1, GLOBAL, CLIENTS, CONFIG)
    failures = [Failure.of(1, 2, "ran out of memory")]
    model = aggregator.aggregate(1, GLOBAL, made_up(1, [0, 1, 3]), failures)
    wrong = [reply for reply in strategy.replies if reply.has_error()]
    assert [(r.metadata.src_node_id, r.error.reason) for r in wrong] == [(2, "ran out of memory")]
    expected = aggregator_of(strategies.load("fedavg", {})).aggregate(
        1, GLOBAL, made_up(1, [0, 1, 3]), []
    )
    assert near(model.tensors, expected.tensors)


def test_a_reply_holds_what_flowers_strategies_expect():
    strategy = Recording(fraction_evaluate=0.0)
    aggregator = aggregator_of(strategy)
    aggregator.instruct(1, GLOBAL, CLIENTS, CONFIG)
    (update,) = made_up(1, [1])
    aggregator.aggregate(1, GLOBAL, [update], [])
    (reply,) = strategy.replies
    assert dict(reply.content.metric_records["metrics"]) == {
        "num-examples": 30,
        "steps": 3,
        "train_loss": 2.0,
        "equal-weight": 1,
    }
    trained = messages.from_arrays(reply.content.array_records["arrays"], LAYOUT)
    delta = subtract(trained, MODEL)
    assert near(delta, update.delta)


def test_what_the_method_remembers_at_the_server_stays_with_the_model():
    memory = {"age": torch.tensor(3)}
    aggregator = aggregator_of(load("FedAvg"))
    before = replace(GLOBAL, memory=memory)
    aggregator.instruct(1, before, CLIENTS, CONFIG)
    after = aggregator.aggregate(1, before, made_up(1), [])
    assert not same(after.tensors, before.tensors)
    assert after.memory is memory


def test_the_model_stays_where_a_strategy_declines_to_aggregate():
    """Bulyan wants 4·1 + 3 clients and returns nothing for four."""
    model = play(aggregator_of(load("Bulyan", num_malicious_nodes=1)), rounds=1)
    assert same(model, MODEL)


def test_a_flower_strategy_may_train_on_fewer_than_it_is_shown():
    strategy = load("FedAvg", fraction_train=0.5)
    seen = [
        [i.client for i in aggregator_of(strategy).instruct(r, GLOBAL, CLIENTS, CONFIG)]
        for r in (1, 1, 2, 3, 4, 5)
    ]
    assert all(len(clients) == 2 and clients == sorted(clients) for clients in seen)
    assert seen[0] == seen[1]
    assert len({tuple(clients) for clients in seen}) > 1


def test_a_flower_strategy_may_not_send_by_itself():
    grid = Participants(CLIENTS)
    assert list(grid.get_node_ids()) == CLIENTS
    for call in (grid.send_and_receive, grid.push_messages, grid.pull_messages):
        with pytest.raises(UserError, match="the server loop sends the messages"):
            call([])


@pytest.mark.parametrize("name", [*FIXED, *ADAPTIVE])
def test_a_wrapper_without_noise_is_the_mean_of_clipped_updates(name: str):
    """All clients weigh the same, however many images they have."""
    clipped = [clip_norm(update.delta, NORM) for update in made_up(1)]
    assert {within for _, within in clipped} == {True, False}
    expected = mean([delta for delta, _ in clipped], [1] * len(CLIENTS))
    assert near(moved(load(name, noise_multiplier=0.0)), expected)


@pytest.mark.parametrize("kind", ["Fixed", "Adaptive"])
def test_it_is_the_same_whether_server_or_clients_clip(kind: str):
    wrappers = [
        load(f"DifferentialPrivacy{side}Side{kind}Clipping") for side in ("Server", "Client")
    ]
    assert near(*(play(aggregator_of(wrapper), rounds=4) for wrapper in wrappers))
    norms = [vars(wrapper)["clipping_norm"] for wrapper in wrappers]
    assert norms[0] == norms[1]
    assert (norms[0] == NORM) == (kind == "Fixed")


def test_the_noise_is_as_large_as_it_is_said_to_be():
    """Its standard deviation is the multiplier times the norm, over the number of clients."""
    name = "DifferentialPrivacyServerSideFixedClipping"
    noise = subtract(*(moved(load(name, noise_multiplier=z)) for z in (30.0, 0.0)))
    values = torch.cat([tensor.flatten() for tensor in noise.values()])
    assert float(values.std()) == pytest.approx(30 * NORM / len(CLIENTS), rel=0.2)


@pytest.mark.parametrize("name", PLAIN)
def test_every_plain_strategy_may_be_wrapped(name: str):
    wrapped = {"name": f"flwr.serverapp.strategy:{name}", **PLAIN[name]}
    for wrapper in (*FIXED, *ADAPTIVE):
        assert is_finite(moved(load(wrapper, strategy=wrapped)))


def exact_delta(epsilon: float, sensitivity: float) -> float:
    """Returns δ of Gaussian noise with standard deviation 1 (arXiv 1805.06530, theorem 8)."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    half, shift = sensitivity / 2, epsilon / sensitivity
    return normal(half - shift) - math.exp(epsilon) * normal(-half - shift)


@pytest.mark.parametrize("name", FIXED)
def test_the_account_is_a_tight_bound_of_what_was_given_away(name: str):
    """T rounds with noise multiplier z are one with z / √T."""
    aggregator = aggregator_of(load(name, noise_multiplier=1.5, target_delta=1e-5))
    before = aggregator.privacy()
    play(aggregator, rounds=5)
    spent = aggregator.privacy()
    assert before is not None
    assert spent is not None
    assert (before["epsilon"], before["releases"]) == (0.0, 0)
    assert (spent["delta"], spent["releases"], spent["accountant"]) == (1e-5, 5, "rdp")
    sensitivity = math.sqrt(5) / 1.5
    assert (
        exact_delta(spent["epsilon"], sensitivity)
        < 1e-5
        < exact_delta(0.8 * spent["epsilon"], sensitivity)
    )


@pytest.mark.parametrize("name", FLOWER)
def test_without_a_delta_nothing_is_counted(name: str):
    assert aggregator_of(load(name)).privacy() is None


def test_a_round_with_a_failure_gives_nothing_away():
    """Flower's wrappers skip it, since their noise is meant for all that were asked."""
    aggregator = aggregator_of(
        load("DifferentialPrivacyServerSideFixedClipping", target_delta=1e-5)
    )
    aggregator.instruct(1, GLOBAL, CLIENTS, CONFIG)
    failures = [Failure.of(1, 2, "ran out of memory")]
    model = aggregator.aggregate(1, GLOBAL, made_up(1, [0, 1, 3]), failures)
    assert same(model.tensors, MODEL)
    spent = aggregator.privacy()
    assert spent is not None
    assert spent["releases"] == 0


def stored(aggregator: Aggregator, folder: Path) -> tuple[State, dict[str, Any]]:
    """Takes a snapshot through the files that a run would write."""
    tensors, plain = aggregator.snapshot()
    save_file(tensors, folder / "strategy.safetensors")
    (folder / "strategy.json").write_text(json.dumps(plain))
    return load_file(folder / "strategy.safetensors"), json.loads(
        (folder / "strategy.json").read_text()
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in FLOWER),
        *((name, {"target_delta": 1e-5}) for name in FIXED),
        (
            "DifferentialPrivacyServerSideAdaptiveClipping",
            {"strategy": "flwr.serverapp.strategy:FedAdam"},
        ),
    ],
)
def test_a_run_goes_on_from_a_snapshot_with_the_same_bits(
    name: str, options: dict[str, Any], tmp_path: Path
):
    whole, first, second = (aggregator_of(load(name, **options)) for _ in range(3))
    model = play(first, rounds=3)
    snapshot = stored(first, tmp_path)
    play(first, 4, model, first=4)  # which does not change the snapshot
    second.restore(*snapshot)
    assert same(play(second, 5, model, first=4), play(whole, 5))
    assert second.privacy() == whole.privacy()


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi", *ADAPTIVE])
def test_without_its_memory_it_would_go_on_otherwise(name: str):
    model = play(aggregator_of(load(name)), rounds=3)
    forgetful = play(aggregator_of(load(name)), 5, model, first=4)
    assert not same(forgetful, play(aggregator_of(load(name)), 5))


def test_a_snapshot_of_another_strategy_is_refused():
    aggregator = aggregator_of(load("FedAdam"))
    play(aggregator)
    with pytest.raises(
        UserError, match="the stored state belongs to strategy FedAdam, expected FedYogi"
    ):
        aggregator_of(load("FedYogi")).restore(*aggregator.snapshot())


def test_a_snapshot_that_lacks_a_tensor_is_refused():
    aggregator = aggregator_of(load("FedAdam"))
    play(aggregator)
    tensors, plain = aggregator.snapshot()
    del tensors["m_t/head.bias"]
    with pytest.raises(UserError, match=r"does not fit strategy FedAdam: KeyError.*m_t/head\.bias"):
        aggregator_of(load("FedAdam")).restore(tensors, plain)


def test_an_account_of_other_terms_is_refused():
    strict, lax = (
        aggregator_of(load("DifferentialPrivacyServerSideFixedClipping", target_delta=delta))
        for delta in (1e-6, 1e-5)
    )
    with pytest.raises(UserError, match="privacy configuration does not match"):
        strict.restore(*lax.snapshot())


def test_memory_that_cannot_be_stored_is_named_when_it_is_missed():
    class Remembering(flower.FedAvg):
        def __init__(self) -> None:
            super().__init__(fraction_evaluate=0.0)
            self.seen = {1, 2}

    tensors, plain = aggregator_of(Remembering()).snapshot()
    with pytest.raises(
        UserError, match=r"Remembering cannot continue .* its attribute seen is a set"
    ):
        aggregator_of(Remembering()).restore(tensors, plain)


def test_memory_that_cannot_be_stored_is_told_before_the_run_as_well():
    class Wrapped(flower.FedAvg):
        def __init__(self) -> None:
            super().__init__(fraction_evaluate=0.0)
            self.seen = {1, 2}

    check_storable(load("FedAdam"))
    outer = load("DifferentialPrivacyServerSideFixedClipping")
    check_storable(outer)
    vars(outer)["strategy"] = Wrapped()
    with pytest.raises(
        UserError, match="its attribute seen is a set, which a checkpoint cannot store"
    ):
        check_storable(outer)


def test_numbers_and_tuples_come_back_as_what_they_were(tmp_path: Path):
    class Counting(flower.FedAvg):
        def __init__(self) -> None:
            super().__init__(fraction_evaluate=0.0)
            self.rate: Any = None
            self.history: list[Any] = []

    first, second = Counting(), Counting()
    first.rate, first.history = np.float32(0.1), [(1, 0.5), (2, np.arange(3))]
    aggregator_of(second).restore(*stored(aggregator_of(first), tmp_path))
    assert type(second.rate) is np.float32
    assert second.rate == first.rate
    assert second.history[0] == (1, 0.5)
    assert type(second.history[1]) is tuple
    assert second.history[1][1].tolist() == [0, 1, 2]


def test_fedadam_is_adam_on_the_mean_update():
    """Flower's differs from torch's in two ways, both of which torch can be told.

    The gradient is minus the mean update. Flower corrects the bias of round t as Adam does that of
    its step t + 1, so torch's counter begins at one. And τ is added to √v before the correction, as
    in the paper's last remark of section 2 (arXiv 1412.6980), where torch adds ε to √(v / c),
    c = 1 - β₂^(t+1): so ε = τ / √c.
    """
    eta, betas, tau = 0.05, (0.9, 0.99), 1e-3
    theirs = load("FedAdam", eta=eta, beta_1=betas[0], beta_2=betas[1], tau=tau)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in MODEL.items()}
    adam = torch.optim.Adam(weights.values(), lr=eta, betas=betas)
    for weight in weights.values():
        adam.state[weight] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": torch.zeros_like(weight),
        }
    for server_round in range(1, 6):
        updates = made_up(server_round)
        step = mean([u.delta for u in updates], [u.samples for u in updates])
        for name, weight in weights.items():
            weight.grad = -step[name]
        adam.param_groups[0]["eps"] = tau / math.sqrt(1 - betas[1] ** (server_round + 1))
        adam.step()
    found = play(aggregator_of(theirs), rounds=5)
    assert l2_norm(subtract(found, MODEL)) > 0.5
    for name, weight in weights.items():
        assert float((found[name] - weight.detach()).abs().max()) < 1e-6, name


def test_a_strategy_of_flower_that_can_end_a_run_is_asked_and_told_of_the_round():
    class Stopping(flower.FedAvg):
        def should_stop(self, server_round: int, result: Any) -> bool:
            measured = result.evaluate_metrics_serverapp[server_round]
            return bool(measured["accuracy"] > 0.5)

    assert not aggregator_of(load("FedAvg")).may_stop
    aggregator = aggregator_of(Stopping())
    assert aggregator.may_stop
    for accuracy in (0.4, 0.6):
        result = RoundResult(accuracy=accuracy, loss=1.0, train_loss=1.0, participants=(0,))
        assert aggregator.should_stop(3, result) == (accuracy > 0.5)
