"""A mistake in an experiment is refused before anything starts, whoever would run it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from flwr.serverapp import strategy as flower

import strategies
from fl_vitlora.config import Config, load, to_yaml
from fl_vitlora.data.shards import TEST_SHARD
from fl_vitlora.encryption import storage_keys
from fl_vitlora.encryption.storage_keys import PASSPHRASE
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.deployment import prepare_server
from fl_vitlora.experiment.runner import run
from fl_vitlora.experiment.validation import check, check_node
from fl_vitlora.flower.simulation.engine import Engine

FLOWER = "flwr.serverapp.strategy:FedAvg"
SECURE = {"privacy.secure_aggregation": True}
IMAGE = {"encryption.scope": "image", "encryption.adapt": True}

# One mistake for each check, with a part of the line that refuses it.
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "byzantine clients": ({"attack.clients": 2}, "attack.clients 2"),
    "faults": ({"faults.clients": 2}, "faults.clients 2"),
    "ranks": ({"finetuning.client_ranks": [1, 2]}, "a rank for each of 4 clients"),
    "evaluation": (
        {"finetuning.patch_embedding": "local", "evaluation.by": "central"},
        "no central model exists",
    ),
    "adaptation": (IMAGE, "every image has its own key"),
    "method": ({"strategy": "flora", "finetuning.method": "head"}, "needs low-rank matrices"),
    "personal tensors": (
        {"strategy": "fedsa_lora", "evaluation.by": "central"},
        "so no central model exists",
    ),
    "patience": ({"evaluation.patience": 3}, "test images must not decide in which round"),
    "validation images": (
        {"data.validation_split": "dev", "data.validation_fraction": 0.1},
        "expected only one of them",
    ),
    "copies": ({"data.copies": 2}, "choose how the copies differ"),
    "quorum": ({"min_clients": 9}, "min_clients 9: only 4 clients train"),
    "objection": ({"strategy": "krum"}, "strategy krum: "),
    "cohort of Flower": (
        {"strategy.name": FLOWER, "strategy.min_available_nodes": 9},
        "strategy.min_available_nodes 9: only 4",
    ),
    "noise": ({"privacy.noise_multiplier": 1.0}, "without privacy.clipping_norm"),
    "measured means": (
        {"finetuning.method": "lora+lda", "privacy.clipping_norm": 1.0},
        "lda measures means",
    ),
    "ties by the loss": (
        {
            "finetuning.method": "tied_lora",
            "finetuning.parameters": {"rule": "agent"},
            "privacy.clipping_norm": 1.0,
            "privacy.noise_multiplier": 1.0,
        },
        "tied_lora chooses tensors by the clients' loss",
    ),
    "secure sum": ({**SECURE, "fraction": 0.5}, "a sum of 2 updates reveals single updates"),
    "single updates": (
        {**SECURE, "strategy": "krum", "strategy.f": 0},
        "strategy krum needs single updates",
    ),
    "codec": ({**SECURE, "compression.uplink": "int8"}, "masked words look random"),
    "passphrase": ({"encryption.at_rest": "passphrase"}, PASSPHRASE),
    "predictor": (
        {"evaluation.predictor": "bein_batch"},
        "measures no statistics of features; add them to the method",
    ),
    "model": ({"model.name": "resnet18", "model.weights": "random"}, "no patch embedding"),
    "weights": ({"model.weights": "nowhere.safetensors"}, "nowhere.safetensors"),
}


@pytest.fixture(autouse=True)
def _nobody_types_a_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_keys, "_asked", lambda: "")
    monkeypatch.delenv(PASSPHRASE, raising=False)


def configure(folder: Path, given: dict[str, Any]) -> Config:
    """Returns an experiment of four clients that writes below a folder."""
    paths = {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    return load(None, {"clients": 4, "engine.device": "cpu", **paths, **given})


def load_strategy(config: Config, confirmed: Collection[str] = ()) -> Any:
    return strategies.load_for(config, confirmed)


def deploy(config: Config, folder: Path) -> None:
    """Does what the server of a deployment does before its first message."""
    (folder / "config.yaml").write_text(to_yaml(config))
    given = {"config": folder / "config.yaml", "shards": folder / "shards", "out": config.out}
    prepare_server({name: str(value) for name, value in given.items()}, load_strategy)


def refusal(folder: Path, config: Config) -> str:
    """Returns the line with which both doors refuse an experiment; they must use the same."""
    shards = folder / "shards"
    shards.mkdir()
    (shards / TEST_SHARD).write_bytes(b"no shard: nobody reads it before the mistake is found")
    with Engine(verbose=False) as engine:
        with pytest.raises(UserError) as simulated:
            run(config, load_strategy(config), engine=engine)
        assert engine._ray is None  # Ray has not been started
    with pytest.raises(UserError) as deployed:
        deploy(config, folder)
    assert str(simulated.value) == str(deployed.value)
    assert not (folder / "owner.key").exists()
    return str(simulated.value)


@pytest.mark.parametrize(("given", "part"), MISTAKES.values(), ids=list(MISTAKES))
def test_simulation_and_deployment_refuse_a_mistake_in_the_same_line(
    tmp_path: Path, given: dict[str, Any], part: str
) -> None:
    line = refusal(tmp_path, configure(tmp_path, given))
    assert part in line
    assert "\n" not in line
    assert not (tmp_path / "run").exists()


def test_both_refuse_a_folder_that_is_in_use_and_leave_it_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert "is in use" in refusal(tmp_path, configure(tmp_path, {}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


def test_an_experiment_without_a_mistake_passes_as_the_strategy_runs_it(tmp_path: Path) -> None:
    doors: dict[str, Any] = {"drafted": None, "new_folder": True, "needs_passphrase": True}
    doors["writes_checkpoints"] = True
    plain = configure(tmp_path, {})
    assert check(plain, load_strategy(plain), **doors) == plain
    assert check_node(plain, load_strategy(plain)) == plain
    personal = configure(tmp_path, {"strategy": "fedsa_lora"})
    assert check(personal, load_strategy(personal), **doors).evaluation.by == "clients"


def test_only_a_run_with_checkpoints_needs_a_strategy_that_they_can_hold(tmp_path: Path) -> None:
    class Remembering(flower.FedAvg):
        def __init__(self) -> None:
            super().__init__(fraction_evaluate=0.0)
            self.seen = {1, 2}

    config = configure(tmp_path, {})
    with pytest.raises(
        UserError, match="its attribute seen is a set, which a checkpoint cannot store"
    ):
        run(config, Remembering())
    doors: dict[str, Any] = {"drafted": None, "new_folder": True, "needs_passphrase": True}
    assert check(config, Remembering(), writes_checkpoints=False, **doors) == config


def test_a_server_that_opens_no_shard_needs_no_passphrase(tmp_path: Path) -> None:
    config = configure(tmp_path, {"encryption.at_rest": "passphrase"})
    with pytest.raises(UserError, match=f"has no {TEST_SHARD}"):  # comes later
        deploy(config, tmp_path)


@pytest.mark.parametrize(
    "name", ["byzantine clients", "adaptation", "method", "codec", "predictor"]
)
def test_a_node_refuses_what_its_client_could_not_do(tmp_path: Path, name: str) -> None:
    given, part = MISTAKES[name]
    config = configure(tmp_path, given)
    with pytest.raises(UserError, match=part):
        check_node(config, load_strategy(config))
