"""Whole runs: real Flower, real Ray, real files; what they leave behind and what they give away."""

from __future__ import annotations

import csv
import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray._private.worker import global_worker
from safetensors import safe_open
from safetensors.torch import load_file

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.keys import derive_key, open_ring
from fl_vitlora.encryption.storage_keys import of_secret
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.client_settings import SameForAll, client_settings
from fl_vitlora.experiment.head_start import with_head_start
from fl_vitlora.experiment.preparation import prepare_model, storage_keys
from fl_vitlora.experiment.server_model import make_server
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.finetuning.methods import export_state, load_state
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.engine import Engine, simulate
from fl_vitlora.flower.simulation.workers import choose_workers
from fl_vitlora.flower.strategies.aggregators import Unaided
from fl_vitlora.models.reading import reader_of
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.state import State, l2_norm, subtract
from tests.whole_runs import DESCENT, ROUNDING, Finished, execute, opened, owned


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> tuple[Finished, Path]:
    """A run that has ended, and the folder of the Ray on which it ran.

    Other programs have a Ray too, and this one is replaced when a test needs other workers.
    """
    done = execute(tmp_path_factory.mktemp("encrypted"), engine)
    return done, Path(global_worker.node.get_session_dir_path())


@pytest.fixture(scope="module")
def finished(ended: tuple[Finished, Path]) -> Finished:
    return ended[0]


@pytest.fixture(scope="module")
def ray_session(ended: tuple[Finished, Path]) -> Path:
    return ended[1]


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
        "plots/accuracy_over_transfer.png",
        "plots/megabytes_over_rounds.png",
        "plots/label_distribution.png",
        "plots/label_distribution.csv",
        "plots/confusion_matrix.png",
        "shards/client-00003.safetensors",
        "shards/test.safetensors",
    }
    assert not [name for name in names if name.endswith(".tmp")]


def test_the_figures_of_classes_are_those_of_the_accuracy(finished: Finished) -> None:
    found, result = finished.result["classification"], finished.result
    matrix, labels = (
        np.array(found["confusion_matrix"]),
        opened(finished, "test.safetensors").labels,
    )
    assert matrix.trace() / matrix.sum() == result["accuracy"]
    assert found["support"] == np.bincount(labels, minlength=10).tolist()
    assert found["images"] == sum(found["calibration"]["images"]) == result["test_images"]
    stored = json.loads((finished.folder / "result.json").read_text())
    assert stored["classification"] == found
    assert result["client_accuracy"] is None  # the server has evaluated


def test_the_reference_is_known_for_each_round(finished: Finished) -> None:
    wire = finished.result["communication"]
    assert sum(wire["full_fine_tuning_by_round"]) == wire["full_fine_tuning_bytes"]
    assert len(wire["full_fine_tuning_by_round"]) == 1 + finished.result["rounds"]


def test_the_labels_of_each_client_are_a_table(finished: Finished) -> None:
    images, _ = owned(finished.config)
    rows = list(csv.DictReader((finished.folder / "plots/label_distribution.csv").open()))
    told = {(int(row["client"]), row["class"]): int(row["images"]) for row in rows}
    for client, part in enumerate(images.parts):
        counts = np.bincount(images.train.labels[part], minlength=10)
        for name, count in zip(images.class_names, counts, strict=True):
            assert told.get((client, name), 0) == count


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
    assert result["failures"] == {"updates": 0, "clients": {}, "reasons": {}}


def test_resolved_config_reads_back_equal(finished: Finished) -> None:
    strategy = strategies.load_for(finished.config)
    decided = with_head_start(finished.config, strategy)
    assert configuration.load(str(finished.folder / "config.yaml")) == decided


def test_ledger_counts_every_byte_that_passed(finished: Finished) -> None:
    wire = finished.result["communication"]
    total = sum(len(part) for part in finished.messages)
    assert wire["uplink_bytes"] + wire["downlink_bytes"] == total
    with (finished.folder / "communication.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 4 + 2 * 2 * 3  # greetings of 4 clients, two rounds of 3, both ways
    assert sum(int(row["total"]) for row in table) == total
    assert wire["payload_bytes"] + wire["overhead_bytes"] == total
    groups = {name: sum(int(row[name]) for row in table) for name in wire["by_group"]}
    assert groups == wire["by_group"]
    assert set(groups) == {"patch_embed", "lora_A", "lora_B", "head"}
    assert sum(groups.values()) == 2 * 2 * 3 * 4 * 14_890
    greeting = sum(int(row["total"]) for row in table if row["purpose"] == "greeting")
    assert wire["greeting_bytes"] == greeting


def test_the_time_on_the_wire_is_that_of_the_slowest_client(finished: Finished) -> None:
    """By default 10 Mbit/s up, 100 down and 50 ms a message."""
    with (finished.folder / "communication.csv").open() as file:
        table = list(csv.DictReader(file))
    rates = {"uplink": 10e6, "downlink": 100e6}
    for line in finished.lines:
        spent = dict.fromkeys(line["participants"], 0.0)
        for row in table:
            if int(row["round"]) == line["round"]:
                seconds = 0.05 + 8 * int(row["total"]) / rates[row["direction"]]
                spent[int(row["client"])] += seconds
        assert line["transfer_seconds"] == pytest.approx(max(spent.values()), abs=1e-4)
    wire = finished.result["communication"]
    greeting = wire["transfer_seconds"] - sum(line["transfer_seconds"] for line in finished.lines)
    assert greeting == pytest.approx(0.1, abs=0.01)
    assert wire["full_fine_tuning_transfer_seconds"] > 2 * 8 * 4 * 567_466 / 10e6


def test_a_target_is_told_with_what_it_took(finished: Finished) -> None:
    assert finished.result["target"] is None
    assert finished.result["stopped"] is None


@pytest.mark.slow
def test_a_budget_is_never_overspent_and_the_run_is_whole(tmp_path: Path, engine: Engine) -> None:
    """Two rounds of three clients cost 720 kB; a budget for one and a half allows one."""
    run = execute(tmp_path, engine, budget="600kB", target_accuracy=0.01)
    wire, result = run.result["communication"], run.result
    assert 300_000 < wire["uplink_bytes"] + wire["downlink_bytes"] <= 600_000
    assert (result["rounds"], result["rounds_planned"], result["stopped"]) == (1, 2, "budget")
    assert set(result["accuracy_by_view"]) == {"right_key", "wrong_key", "no_key"}
    (line,) = run.lines
    assert result["accuracy"] == line["accuracy"]
    sent = wire["uplink_bytes"] + wire["downlink_bytes"]
    assert result["target"] == {
        "accuracy": 0.01,
        "reached": True,
        "round": 1,
        "bytes": sent,
        "transfer_seconds": wire["transfer_seconds"],
        "measured_on": "test",
    }


def test_a_budget_that_the_greeting_spends_is_a_mistake(tmp_path: Path, engine: Engine) -> None:
    with pytest.raises(UserError, match=r"the first messages, .* took \d+ bytes, so no round"):
        execute(tmp_path, engine, budget=1000)


@pytest.mark.slow
def test_coded_runs_are_the_same_with_one_worker_and_with_two(
    tmp_path: Path, engine: Engine
) -> None:
    """Codecs draw by round and client, and clients of a stream hold the same."""
    lanes = {"compression__uplink": "topk(0.2)+int4", "compression__downlink": "int4"}
    key = {"encryption__key_file": str(tmp_path / "owner.key")}
    finals = []
    for workers in (1, 2):
        run = execute(tmp_path / str(workers), engine, engine__workers=workers, **lanes, **key)
        assert not any(line["failures"] or line["taken_apart"] for line in run.lines)
        finals.append(load_file(run.folder / "model.safetensors"))
        assert run.result["communication"]["saving"] > 200
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_neither_keys_nor_plain_images_leave_the_owner(
    finished: Finished, ray_session: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Looks for them in the shards, the messages, the run folder and Ray's logs."""
    secret = open_ring(Path(finished.config.encryption.key_file)).current
    images, holder = owned(finished.config)
    logs = [path for path in (ray_session / "logs").rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") for path in logs)
    haystack = [
        *finished.messages,
        *(p.read_bytes() for p in finished.folder.rglob("*") if p.is_file()),
        *(path.read_bytes() for path in logs),
        "".join(capfd.readouterr()).encode(),
    ]
    needles = [secret, secret.hex().encode()]
    needles += [part.numpy().tobytes() for part in holder.key(client_party(0)).values()]
    context = f"shared/seed {finished.config.seed}"
    derived = [derive_key(secret, f"{context}/{step}") for step in holder.cipher.steps]
    assert derived  # of these the keys were drawn
    needles += [form for key in derived for form in (key, key.hex().encode())]
    needles += [image.numpy().tobytes() for image in images.train.read(images.parts[0], 16, 16)]
    needles += [image.numpy().tobytes() for image in images.test.read(np.arange(5), 16, 16)]
    for needle in needles:
        assert len(needle) > 15
        assert not any(needle in hay for hay in haystack)
    name = open_ring(Path(finished.config.encryption.key_file)).path.name
    assert any(name.encode() in hay for hay in haystack)  # the search finds


def test_a_thief_without_the_key_ring_has_no_image_no_label_and_no_key(
    finished: Finished, ray_session: Path
) -> None:
    """Looks through the whole run folder and all that Ray left on the disk for the session."""
    ring = open_ring(Path(finished.config.encryption.key_file))
    storage = of_secret(ring.current)
    haystack = [
        path.read_bytes()
        for place in (finished.folder, ray_session)
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink()
    ]
    keys = [storage.root, *(storage.of_party(party) for party in ("test", "client 0", "client 3"))]
    needles = [form for key in keys for form in (key, key.hex().encode())]
    for name in ("client-00000.safetensors", "client-00003.safetensors", "test.safetensors"):
        shard = opened(finished, name)
        needles += [image.numpy().tobytes() for image in shard.images[:10]]
        if len(shard) > 15:  # a few labels are found anywhere
            needles += [shard.labels.numpy().tobytes(), bytes(shard.labels.tolist())]
    for needle in needles:
        assert len(needle) > 15
        assert not any(needle in hay for hay in haystack)
    assert any(storage.name.encode() in hay for hay in haystack)  # the search finds


def test_the_names_of_the_classes_are_in_the_run_folder_and_in_its_models(
    finished: Finished,
) -> None:
    digits = [str(digit) for digit in range(10)]
    assert finished.result["class_names"] == digits
    assert json.loads((finished.folder / "classes.json").read_text()) == digits
    for name in ("model.safetensors", "best_model.safetensors"):
        with safe_open(finished.folder / name, framework="pt") as file:
            assert json.loads(file.metadata()["class_names"]) == digits


def test_shards_are_ciphertext_that_the_key_opens(finished: Finished) -> None:
    images, holder = owned(finished.config)
    for client, part in enumerate(images.parts):
        shard = opened(finished, f"client-{client:05d}.safetensors")
        plain = images.train.read(part, 16, 16)
        assert not (shard.images == plain).all(dim=(1, 2, 3)).any()
        assert torch.equal(holder.decrypt(shard.images, client_party(client)), plain)


@pytest.mark.slow
def test_one_worker_and_two_give_the_same_bits(
    finished: Finished, tmp_path: Path, engine: Engine
) -> None:
    key = finished.config.encryption.key_file
    alone = execute(tmp_path, engine, engine__workers=1, encryption__key_file=key)
    first = load_file(finished.folder / "model.safetensors")
    second = load_file(alone.folder / "model.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert alone.result["accuracy"] == finished.result["accuracy"]
    assert alone.result["loss"] == finished.result["loss"]


@pytest.mark.slow
def test_clients_trained_together_learn_what_they_learn_alone_however_many_workers_there_are(
    finished: Finished, tmp_path: Path, engine: Engine
) -> None:
    key = finished.config.encryption.key_file
    both = [
        execute(
            tmp_path / str(workers),
            engine,
            engine__workers=workers,
            engine__cohort=2,
            encryption__key_file=key,
        )
        for workers in (1, 2)
    ]
    first, second = (load_file(one.folder / "model.safetensors") for one in both)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for together, alone in zip(both[0].lines, finished.lines, strict=True):
        assert together["participants"] == alone["participants"]
        assert together["failures"] == []
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-2)
        for direction in ("uplink_bytes", "downlink_bytes"):
            assert together[direction] == pytest.approx(alone[direction], rel=1e-3)


@pytest.mark.slow
def test_reference_equals_a_real_run_of_full_fine_tuning(
    finished: Finished, tmp_path: Path, engine: Engine
) -> None:
    """Greetings included; ids of nodes and messages are longer or shorter, up to 64 bytes each."""
    full = execute(tmp_path, engine, finetuning__method="full")
    wire = full.result["communication"]
    promised = finished.result["communication"]["full_fine_tuning_bytes"]
    sent, slack = wire["uplink_bytes"] + wire["downlink_bytes"], 64 * wire["messages"]
    assert abs(wire["full_fine_tuning_bytes"] - promised) <= slack  # the id of the run as well
    assert abs(sent - promised) <= slack
    assert abs(wire["saving"] - 1) <= slack / sent


@pytest.mark.slow
def test_flower_strategy_runs_on_plain_images(tmp_path: Path, engine: Engine) -> None:
    done = execute(
        tmp_path,
        engine,
        encryption__steps=[],
        encryption__at_rest="none",
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
        "falls_to_ciphertexts": None,
        "at_rest": "none",
        "adapted": False,
        "patch_embedding": "aggregate",
    }
    assert done.result["accuracy_by_view"] == {"right_key": done.result["accuracy"]}
    assert not (tmp_path / "owner.key").exists()


def test_with_key_adaptation_a_whole_run_is_the_plain_run(tmp_path: Path, engine: Engine) -> None:
    """Three rounds with partial participation; E is compared after adapting it.

    The key is a new one each time. For AdamW, and for double precision, see `test_adaptation`.
    """
    (tmp_path / "plain").mkdir()
    (tmp_path / "encrypted").mkdir()
    plain = execute(tmp_path / "plain", engine, encryption__steps=[], rounds=3, **DESCENT)
    encrypted = execute(tmp_path / "encrypted", engine, encryption__adapt=True, rounds=3, **DESCENT)
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
    assert moved > 0.1
    assert l2_norm(subtract(reached, adapted(trained))) < ROUNDING * moved
    assert l2_norm(subtract(reached, trained)) > 0.5 * moved  # without adapting it is another E
    seen = encrypted.result["accuracy_by_view"]
    assert seen["right_key"] == encrypted.result["accuracy"]
    assert max(seen["wrong_key"], seen["no_key"]) < 0.5 * seen["right_key"]
    assert encrypted.result["accuracy"] == pytest.approx(plain.result["accuracy"], abs=0.01)
    assert encrypted.result["loss"] == pytest.approx(plain.result["loss"], rel=1e-4)


FLOWER_STRATEGIES: dict[str, dict[str, float]] = {
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
    **{
        f"DifferentialPrivacy{side}Side{kind}Clipping": options
        for side in ("Server", "Client")
        for kind, options in {
            "Fixed": {"noise_multiplier": 0.1, "clipping_norm": 1.0, "target_delta": 1e-5},
            "Adaptive": {"noise_multiplier": 0.1, "initial_clipping_norm": 1.0},
        }.items()
    },
}


@pytest.mark.slow
def test_all_strategies_of_flower_run_unmodified(
    finished: Finished, tmp_path: Path, engine: Engine
) -> None:
    """Each by its class name, two rounds on the same encrypted shards, over one Ray."""
    config = dataclasses.replace(finished.config, fraction=1.0)
    shards = finished.folder / "shards"
    server = make_server(prepare_model(config, 10, "cpu"), lambda origin: origin)
    class_names, storage = tuple(finished.result["class_names"]), storage_keys(config)
    workers = choose_workers("cpu", 2, most=4)
    ended: dict[str, Run] = {}

    def serve(grid: Any, stop: threading.Event) -> None:
        for name, options in FLOWER_STRATEGIES.items():
            named = dataclasses.replace(config, out=str(tmp_path / name))
            folder = RunFolder.create(named)
            strategy = strategies.load(
                f"flwr.serverapp.strategy:{name}", options, cohort=4, clients=4
            )
            ended[name] = Run(
                config=named,
                strategy=strategy,
                server=server,
                class_names=class_names,
                shards=shards,
                storage=storage,
                folder=folder,
                watch=Watch(),
                logbook=Logbook.begin(folder.path),
            )
            ended[name].serve(grid, stop)

    ray = engine.start(workers)
    ray.wait()
    settings = client_settings(
        config, shards, class_names, "cpu", Unaided(), with_key=False, storage=storage
    )
    app = make_client_app(SameForAll(settings))
    simulate(
        app,
        serve,
        clients=config.clients,
        together=2,
        patience=60,
        states=ClientStates(),
        workers=workers,
        ray=ray,
        verbose=False,
    )
    for name, one in ended.items():
        assert [len(line["participants"]) for line in one.record.lines] == [4, 4], name
        assert all(line["moved"] for line in one.record.lines), name
        assert one.record.lines[-1]["loss"] < 20, name
        assert (one.result()["privacy"] is None) == ("Fixed" not in name), name
    assert len({one.record.lines[-1]["loss"] for one in ended.values()}) > 12  # they do differ


def test_a_private_run_tells_what_it_gave_away(tmp_path: Path, engine: Engine) -> None:
    done = execute(
        tmp_path,
        engine,
        encryption__steps=[],
        strategy="flwr.serverapp.strategy:DifferentialPrivacyClientSideFixedClipping",
        strategy__strategy="flwr.serverapp.strategy:FedAvg",
        strategy__noise_multiplier=2.0,
        strategy__clipping_norm=1.0,
        strategy__target_delta=1e-5,
    )
    told = json.loads((done.folder / "result.json").read_text())["privacy"]
    assert told == done.result["privacy"]
    assert (told["delta"], told["releases"], told["accountant"]) == (1e-5, 2, "rdp")
    assert 2 < told["epsilon"] < 5
    assert done.result["idle_rounds"] == 0
