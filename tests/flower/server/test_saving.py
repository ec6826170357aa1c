"""What a run saves is told against one reference, whatever its strategy, codec and evaluator.

The whole server side serves the real client app, without Ray: three clients, 30 digits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Error, Message
from torch import nn

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.adaptation import policies
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.reference import MessageSizes
from fl_vitlora.experiment.client_settings import SameForAll, client_settings
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.stage import Experiment, find_stage, prepare_stage
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.strategies import identity
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.state import count
from tests.flower.conftest import SIZES, LocalGrid

pytestmark = pytest.mark.slow

CLIENTS, ROUNDS = len(SIZES), 2
MODEL = 567_466  # scalars of the whole model
SMALL = {
    "clients": CLIENTS,
    "rounds": ROUNDS,
    "data.limit": 30,
    "data.partition": "iid",
    "engine.device": "cpu",
}
SLACK = 24  # bytes by which a message of a real run may differ: longer numbers of nodes and images


class Forgetful(LocalGrid):
    """One client fails in its first attempt of every round, or in each."""

    def __init__(self, app: Any, fails: int, attempts: int) -> None:
        super().__init__(app, CLIENTS)
        self._fails, self._attempts = fails, attempts
        self._asked: dict[int, int] = {}

    def answer(self, message: Message) -> Message:
        training = message.metadata.message_type == "train"
        if training and message.metadata.dst_node_id - 100 == self._fails:
            number = len([m for m in self.passed if m.metadata.message_type == "train"])
            self._asked[number] = self._asked.get(number, 0) + 1
            if self._attempts > 1 or len(self._asked) % 2 == 1:
                return Message(Error(2, "out of memory"), reply_to=message)
        return super().answer(message)


def serve(
    folder: Path,
    grid: Any = None,
    strategy: AnyStrategy | None = None,
    states: ClientStates | None = None,
    *,
    resume: bool = False,
    secret_seed: int | None = None,
    **given: Any,
) -> tuple[dict[str, Any], Run]:
    """Runs an experiment; a part of `experiment.run`, with another grid."""
    folder.mkdir(exist_ok=True)
    paths = {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    settings = {path.replace("__", "."): value for path, value in given.items()}
    asked = configuration.load(None, {**SMALL, **paths, **settings})
    strategy = strategy or strategies.load_for(asked)
    asked = identity.told(asked, strategy)
    config = policies.for_strategy(asked, client_half(strategy))
    experiment = Experiment(written=asked, config=config, strategy=strategy, watch=Watch())
    stage = find_stage(experiment, "cpu") if resume else None
    if stage is None:
        stage = prepare_stage(experiment, "cpu")
    told = client_settings(
        config,
        stage.folder.shards,
        stage.class_names,
        "cpu",
        client_half(strategy),
        with_key=policies.clients_need_key(config),
        storage=stage.storage,
    )
    run = Run(
        config=config,
        strategy=strategy,
        server=stage.server,
        shards=stage.folder.shards,
        folder=stage.folder,
        watch=Watch(),
        logbook=stage.logbook,
        class_names=stage.class_names,
        storage=stage.storage,
        holder=stage.holder,
        states=states,
        checkpoint=stage.checkpoint,
        secret_seed=secret_seed,
    )
    app = make_client_app(SameForAll(told))
    try:
        run.serve(grid(app) if grid else LocalGrid(app, CLIENTS))
    finally:
        stage.folder.release()
    return run.result(), run


def sizes_of(run: Run) -> MessageSizes:
    assert run.record.sizes is not None
    return run.record.sizes


def wire(folder: Path, **given: Any) -> dict[str, Any]:
    found: dict[str, Any] = serve(folder, **given)[0]["communication"]
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run of the default kind is compared with."""
    with pytest.MonkeyPatch.context() as patch:
        from flwr.supercore.task_identity import TaskIdentity

        for name in ("_run_id", "_node_id", "_task_id"):
            patch.setattr(TaskIdentity, name, 1)
        return wire(tmp_path_factory.mktemp("default"))


def test_a_run_of_full_fine_tuning_saves_nothing(tmp_path: Path, reference: dict[str, Any]):
    """Message by message: the real ledger and the reference have the same entries."""
    result, run = serve(tmp_path, finetuning__method="full")
    told, full = result["communication"], run.record.full_fine_tuning()
    assert f"{told['saving']:.3f}x {told['saving_with_flower']:.3f}x" == "1.000x 1.000x"
    assert told["full_fine_tuning_bytes"] == reference["full_fine_tuning_bytes"]
    assert told["messages"] == told["full_fine_tuning_messages"] == len(run.record.ledger)
    assert sizes(run.record.ledger).keys() == sizes(full).keys()
    for place, size in sizes(run.record.ledger).items():
        assert abs(size - sizes(full)[place]) <= SLACK


def sizes(ledger: Ledger) -> dict[tuple[Any, ...], int]:
    return {(e.round, e.purpose, e.client, e.direction): e.total for e in ledger}


SAME: dict[str, dict[str, Any]] = {
    "fedsa_lora": {"strategy__name": "fedsa_lora"},
    "flora": {"strategy__name": "flora"},
    "Flower's FedAdam": {"strategy__name": "flwr.serverapp.strategy:FedAdam"},
    "the head alone": {"finetuning__method": "head"},
    "a secure sum": {"privacy__secure_aggregation": True},
    "a coded uplink": {"compression__uplink": "topk(0.1)+int4"},
    "a kernel for each block": {"encryption__scope": "block", "encryption__adapt": True},
}


@pytest.mark.parametrize("given", list(SAME.values()), ids=list(SAME))
def test_the_reference_depends_on_who_took_part_and_on_nothing_else(
    given: dict[str, Any], tmp_path: Path, reference: dict[str, Any]
):
    told = wire(tmp_path, **given)
    for name in ("bytes", "messages", "with_flower_bytes", "transfer_seconds"):
        assert told[f"full_fine_tuning_{name}"] == reference[f"full_fine_tuning_{name}"]
    sent = told["uplink_bytes"] + told["downlink_bytes"]
    assert told["saving"] == told["full_fine_tuning_bytes"] / sent


def test_evaluating_clients_cost_and_save_nothing(tmp_path: Path, reference: dict[str, Any]):
    told = wire(tmp_path, evaluation__by="clients")
    assert told["full_fine_tuning_bytes"] == reference["full_fine_tuning_bytes"]
    assert told["saving"] < 0.7 * reference["saving"]


def test_a_coded_downlink_spares_round_1_and_so_does_its_reference(
    tmp_path: Path, reference: dict[str, Any]
):
    """Half of the downloads are of the initial model, which all have built."""
    told, run = serve(tmp_path, compression__downlink="int8")
    first = [e for e in run.record.ledger if e.round == 1 and e.direction == "downlink"]
    assert max(entry.total for entry in first) < 1000  # it says that nothing has changed
    cached = CLIENTS * sizes_of(run).downlink
    full = told["communication"]["full_fine_tuning_bytes"]
    assert full == reference["full_fine_tuning_bytes"] - cached


def test_participants_count_and_no_others(tmp_path: Path, reference: dict[str, Any]):
    told, run = serve(tmp_path, fraction=0.5)
    asked = sum(len(line["participants"]) for line in run.record.lines)
    assert 0 < asked < ROUNDS * CLIENTS
    whole = sizes_of(run).downlink + sizes_of(run).uplink
    missing = (ROUNDS * CLIENTS - asked) * whole
    full = told["communication"]["full_fine_tuning_bytes"]
    assert full == reference["full_fine_tuning_bytes"] - missing


def test_a_run_that_its_budget_stops_is_compared_with_as_many_rounds(tmp_path: Path):
    told, run = serve(tmp_path, budget="600kB")
    assert told["rounds"] == 1
    whole = sizes_of(run).downlink + sizes_of(run).uplink
    greeting = sizes_of(run).question + sizes_of(run).greeting
    assert told["communication"]["full_fine_tuning_bytes"] == CLIENTS * (whole + greeting)


@pytest.mark.parametrize("attempts", [1, 2], ids=["once", "again"])
def test_a_repeated_message_is_the_run_s_own_and_a_lost_update_is_nobody_s(
    attempts: int, tmp_path: Path, reference: dict[str, Any]
):
    told, run = serve(tmp_path, grid=lambda app: Forgetful(app, 1, attempts))
    lost = sum(len(line["failures"]) for line in run.record.lines)
    assert lost == (0 if attempts == 1 else ROUNDS)
    found = told["communication"]
    full = reference["full_fine_tuning_bytes"] - lost * sizes_of(run).uplink
    assert found["full_fine_tuning_bytes"] == full
    assert found["downlink_bytes"] > 1.3 * reference["downlink_bytes"]  # four messages for three


def test_what_a_method_adds_is_no_part_of_the_model(tmp_path: Path):
    """Whatever its tensors are called."""
    _, run = serve(tmp_path, rounds=1)
    before = count(run.server.whole)
    run.server.backbone.model.register_parameter("prompts", nn.Parameter(torch.zeros(8, 96)))
    assert count(run.server.whole) == before == MODEL


@pytest.mark.parametrize("deployed", [False, True])
def test_noise_is_told_with_where_it_came_from(*, deployed: bool, tmp_path: Path):
    pytest.importorskip("dp_accounting")
    aim: dict[str, Any] = {"privacy__clipping_norm": 1, "privacy__target_epsilon": 8}
    told, _ = serve(tmp_path, secret_seed=7 if deployed else None, **aim)
    privacy = told["privacy"]
    assert ("seed of the run (config.yaml)" in privacy["noise_from"]) != deployed
    assert privacy["target_epsilon"] == 8
    assert 7.9 < privacy["epsilon"] <= 8
    assert privacy["noise_multiplier"] == pytest.approx(0.9, abs=0.1)
