"""Whole runs: real Flower, real Ray, real files; what they leave behind and what they give away."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.data.shards import open_shard
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.keys import open_ring
from fl_vitlora.experiment import Fixed, client_settings
from fl_vitlora.finetuning.methods import export_state, load_state
from fl_vitlora.flower.aggregators import Unaided
from fl_vitlora.flower.client_app import make_client_app
from fl_vitlora.flower.simulation import Ray, choose_workers, simulate
from fl_vitlora.models.reading import reader_of
from fl_vitlora.preparation import prepare_model
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.serving import Run, Watch, make_server
from fl_vitlora.state import State, l2_norm, subtract
from tests.whole_runs import Finished, execute, owned


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return execute(tmp_path_factory.mktemp("encrypted"))


def test_run_folder_holds_what_is_promised(finished: Finished) -> None:
    names = {str(p.relative_to(finished.folder)) for p in finished.folder.rglob("*") if p.is_file()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "rounds.jsonl",
        "result.json",
        "communication.csv",
        "model.safetensors",
        "plots/accuracy_over_rounds.png",
        "plots/accuracy_over_megabytes.png",
        "plots/label_distribution.png",
        "shards/client-00003.safetensors",
        "shards/test.safetensors",
    }
    assert not [name for name in names if name.endswith(".tmp")]


def test_result_and_rounds_have_their_fields(finished: Finished) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    lines = [json.loads(x) for x in (finished.folder / "rounds.jsonl").read_text().splitlines()]
    assert result == finished.result
    assert (result["clients"], result["rounds"], result["seed"]) == (4, 2, 7)
    assert (result["strategy"], result["method"]) == ("fedavg", "lora+patch_embed")
    assert (result["trainable_parameters"], result["total_parameters"]) == (14_890, 567_466)
    assert set(result["seconds"]) == {"setup", "training", "total"}
    assert [line["round"] for line in lines] == [1, 2]
    assert all(len(line["participants"]) == 3 and line["failures"] == [] for line in lines)
    assert result["accuracy"] == lines[-1]["accuracy"]
    assert all(line["aggregation_error"] > 0 for line in lines)
    assert result["aggregation_error"] == pytest.approx(
        sum(line["aggregation_error"] for line in lines) / 2
    )
    assert result["attack"] == {}


def test_resolved_config_reads_back_equal(finished: Finished) -> None:
    assert configuration.load(str(finished.folder / "config.yaml")) == finished.config


def test_ledger_counts_every_byte_that_passed(finished: Finished) -> None:
    wire = finished.result["communication"]
    total = sum(len(part) for part in finished.messages)
    assert wire["uplink_bytes"] + wire["downlink_bytes"] == total
    table = (finished.folder / "communication.csv").read_text().splitlines()[1:]
    assert len(table) == 2 * 4 + 2 * 2 * 3  # greetings of 4 clients, two rounds of 3, both ways
    assert sum(int(a) + int(b) for *_, a, b in (line.split(",") for line in table)) == total


def test_neither_keys_nor_plain_images_leave_the_owner(
    finished: Finished, capfd: pytest.CaptureFixture[str]
) -> None:
    """Looks for them in the shards, the messages, the run folder and Ray's logs."""
    secret = open_ring(Path(finished.config.encryption.key_file)).current
    images, holder = owned(finished.config)
    logs = Path("/tmp/ray/session_latest/logs")
    haystack = [
        *finished.messages,
        *(p.read_bytes() for p in finished.folder.rglob("*") if p.is_file()),
        *(p.read_bytes() for p in logs.rglob("*") if p.is_file()),
        "".join(capfd.readouterr()).encode(),
    ]
    needles = [secret, secret.hex().encode()]
    needles += [part.numpy().tobytes() for part in holder.key(client_party(0)).values()]
    needles += [image.numpy().tobytes() for image in images.train.read(images.parts[0], 16, 16)]
    needles += [image.numpy().tobytes() for image in images.test.read(np.arange(5), 16, 16)]
    for needle in needles:
        assert len(needle) > 15
        assert not any(needle in hay for hay in haystack)
    ciphertext = open_shard(finished.folder / "shards" / "client-00000.safetensors").images
    assert any(ciphertext[0].numpy().tobytes() in hay for hay in haystack)  # the search finds


def test_shards_are_ciphertext_that_the_key_opens(finished: Finished) -> None:
    images, holder = owned(finished.config)
    for client, part in enumerate(images.parts):
        shard = open_shard(finished.folder / "shards" / f"client-{client:05d}.safetensors")
        plain = images.train.read(part, 16, 16)
        assert not (shard.images == plain).all(dim=(1, 2, 3)).any()
        assert torch.equal(holder.decrypt(shard.images, client_party(client)), plain)


def test_one_worker_and_two_give_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    key = finished.config.encryption.key_file
    alone = execute(tmp_path, engine__workers=1, encryption__key_file=key)
    first = load_file(finished.folder / "model.safetensors")
    second = load_file(alone.folder / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert alone.result["accuracy"] == finished.result["accuracy"]
    assert alone.result["loss"] == finished.result["loss"]


def test_reference_equals_a_real_run_of_full_fine_tuning(
    finished: Finished, tmp_path: Path
) -> None:
    full = execute(tmp_path, finetuning__method="full")
    wire = full.result["communication"]
    promised = finished.result["communication"]["full_fine_tuning_bytes"]
    assert wire["uplink_bytes"] + wire["downlink_bytes"] == pytest.approx(promised, rel=0.01)
    assert wire["saving"] == pytest.approx(1, rel=0.01)


def test_flower_strategy_runs_on_plain_images(tmp_path: Path) -> None:
    done = execute(
        tmp_path,
        encryption__steps=[],
        strategy__name="flwr.serverapp.strategy:FedAdam",
        strategy__eta=0.01,
        rounds=1,
    )
    assert done.result["strategy"].endswith("FedAdam")
    assert done.result["encryption"] == {
        "steps": [],
        "scope": "shared",
        "key_id": None,
        "key_space_bits": 0,
        "adapted": False,
        "patch_embedding": "aggregate",
    }
    assert done.result["accuracy_by_view"] == {"right_key": done.result["accuracy"]}
    assert not (tmp_path / "owner.key").exists()


def test_with_key_adaptation_a_whole_run_is_the_plain_run(tmp_path: Path) -> None:
    """Three rounds with partial participation and AdamW; E is compared after adapting it.

    Both runs are float32 and add in another order; AdamW makes steps of such differences wherever
    a gradient is nearly zero. So the distance of all weights is measured against how far training
    moved them.
    """
    (tmp_path / "plain").mkdir()
    (tmp_path / "encrypted").mkdir()
    plain = execute(tmp_path / "plain", encryption__steps=[], rounds=3)
    secret = tmp_path / "encrypted" / "owner.key"
    secret.write_text(bytes(range(32)).hex())  # always the same key, so always the same rounding
    secret.chmod(0o600)
    encrypted = execute(tmp_path / "encrypted", encryption__adapt=True, rounds=3)
    _, holder = owned(encrypted.config)
    backbone = prepare_model(plain.config, 10, "cpu")
    initial = export_state(backbone.model)
    trained = load_file(plain.folder / "model.safetensors")
    reached = load_file(encrypted.folder / "model.safetensors")

    def adapted(state: State) -> State:
        load_state(backbone.model, state)
        weight = holder.adapt(reader_of(backbone), "server").weight
        return {**state, "patch_embed.proj.weight": weight.view(96, 3, 4, 4)}

    reached = {name: reached[name] for name in trained}
    moved = l2_norm(subtract(trained, {name: initial[name] for name in trained}))
    assert l2_norm(subtract(reached, adapted(trained))) < 0.001 * moved
    for name, tensor in adapted(trained).items():
        torch.testing.assert_close(reached[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
    assert l2_norm(subtract(reached, trained)) > 0.5 * moved  # without adapting it is another E
    seen = encrypted.result["accuracy_by_view"]
    assert seen["right_key"] == encrypted.result["accuracy"] == plain.result["accuracy"]
    assert max(seen["wrong_key"], seen["no_key"]) < 0.5 * seen["right_key"]
    assert encrypted.result["accuracy"] == plain.result["accuracy"]
    assert encrypted.result["loss"] == pytest.approx(plain.result["loss"], rel=1e-4)


PLAIN_FLOWER_STRATEGIES: dict[str, dict[str, float]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9},
    "FedAdagrad": {"eta": 0.01},
    "FedAdam": {"eta": 0.01},
    "FedYogi": {"eta": 0.01},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "FedProx": {"proximal_mu": 0.1},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {},
    "QFedAvg": {"client_learning_rate": 0.02},
}


def test_all_plain_strategies_of_flower_run_unmodified(finished: Finished, tmp_path: Path) -> None:
    """Each by its class name, two rounds on the same encrypted shards, over one Ray."""
    config = dataclasses.replace(finished.config, fraction=1.0)
    shards = finished.folder / "shards"
    server = make_server(prepare_model(config, 10, "cpu"), lambda origin: origin)
    workers = choose_workers("cpu", 2, most=4)
    ended: dict[str, Run] = {}

    def serve(grid: Any, stop: threading.Event) -> None:
        for name, options in PLAIN_FLOWER_STRATEGIES.items():
            named = dataclasses.replace(config, out=str(tmp_path / name))
            folder = RunFolder.create(named)
            strategy = strategies.load(f"flwr.serverapp.strategy:{name}", options)
            ended[name] = Run(
                config=named,
                strategy=strategy,
                server=server,
                shards=shards,
                folder=folder,
                watch=Watch(),
            )
            ended[name].serve(grid, stop)

    ray = Ray(workers, verbose=False)
    try:
        ray.wait()
        settings = client_settings(config, shards, 10, "cpu", Unaided(), with_key=False)
        app = make_client_app(Fixed(settings))
        simulate(app, serve, clients=config.clients, ray=ray, verbose=False)
    finally:
        ray.stop()
    for name, one in ended.items():
        assert [len(line["participants"]) for line in one.lines] == [4, 4], name
        assert one.lines[-1]["loss"] < 20, name
    assert len({one.lines[-1]["loss"] for one in ended.values()}) > 8  # they do differ
