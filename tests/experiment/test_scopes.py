"""Whole runs with a key for each client or image, and patch embeddings aligned or kept.

Real Flower, real Ray, real files, as in `test_runs`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, load
from fl_vitlora.data.shards import client_shard
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.keys import key_id
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.experiment.client_settings import client_settings
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.finetuning.methods import export_state
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.strategies.aggregators import Unaided
from fl_vitlora.models.reading import WEIGHT, reader_of
from fl_vitlora.state import State, l2_norm, subtract
from tests.whole_runs import DESCENT, ROUNDING, Finished, execute, opened, owned

pytestmark = pytest.mark.slow

SECRET = bytes(range(32))  # one key ring for all runs, so that they can be compared
BIAS = "patch_embed.proj.bias"


def execute_with_key(folder: Path, engine: Engine, **overrides: Any) -> Finished:
    ring = folder / "owner.key"
    ring.write_text(SECRET.hex())
    ring.chmod(0o600)
    return execute(folder, engine, **overrides)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Finished:
    folder = tmp_path_factory.mktemp("plain")
    return execute(folder, engine, encryption__steps=[], rounds=3, **DESCENT)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Finished:
    return execute_with_key(
        tmp_path_factory.mktemp("aligned"),
        engine,
        encryption__scope="client",
        encryption__adapt=True,
        finetuning__patch_embedding="aligned",
        rounds=3,
        **DESCENT,
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Finished:
    return execute_with_key(
        tmp_path_factory.mktemp("kept"),
        engine,
        encryption__scope="client",
        encryption__adapt=True,
        finetuning__patch_embedding="local",
        rounds=3,
    )


def model_of(run: Finished) -> State:
    state: State = load_file(run.folder / "model.safetensors")
    return state


def initial_of(run: Finished) -> State:
    """What a public model starts from."""
    return export_state(prepare_model(run.config, 10, "cpu").model)


def test_with_a_key_for_each_client_a_whole_run_is_the_plain_run(
    plain: Finished, aligned: Finished
) -> None:
    """Nothing is turned back for comparison: the server's model is in plain coordinates.

    For AdamW, and for double precision, see `test_adaptation`.
    """
    trained, reached, initial = model_of(plain), model_of(aligned), initial_of(plain)
    assert trained.keys() == reached.keys() >= {WEIGHT, BIAS}
    moved = l2_norm(subtract(trained, {name: initial[name] for name in trained}))
    assert moved > 0.1
    assert l2_norm(subtract(reached, trained)) < ROUNDING * moved
    assert aligned.result["accuracy"] == pytest.approx(plain.result["accuracy"], abs=0.01)
    assert aligned.result["loss"] == pytest.approx(plain.result["loss"], rel=1e-4)


def test_the_patch_embedding_of_that_run_was_trained_and_its_clients_had_other_keys(
    aligned: Finished,
) -> None:
    """So that the comparison with the plain run is not one of nothing."""
    initial, reached = initial_of(aligned)[WEIGHT], model_of(aligned)[WEIGHT]
    assert float((reached - initial).norm() / initial.norm()) > 0.01
    _, holder = owned(aligned.config)
    turned = [holder.adapt(reader_of_public(aligned), client_party(c)).weight for c in range(4)]
    assert not any(torch.equal(turned[0], other) for other in turned[1:])


def test_clients_with_keys_of_their_own_train_together(
    aligned: Finished, tmp_path: Path, engine: Engine
) -> None:
    together = execute_with_key(
        tmp_path,
        engine,
        encryption__scope="client",
        encryption__adapt=True,
        finetuning__patch_embedding="aligned",
        rounds=3,
        engine__cohort=3,
        **DESCENT,
    )
    for one, other in zip(together.lines, aligned.lines, strict=True):
        assert one["failures"] == []
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def reader_of_public(run: Finished) -> PatchReader:
    return reader_of(prepare_model(run.config, 10, "cpu"))


def test_every_clients_shards_open_with_its_own_key_alone(aligned: Finished) -> None:
    images, holder = owned(aligned.config)
    for client in range(4):
        for name, source, part in (
            (client_shard(client), images.train, images.parts[client]),
            (client_shard(client, "test"), images.test, images.test_parts[client]),
        ):
            ciphertext = opened(aligned, name).images
            expected = source.read(part, 16, 16)
            assert torch.equal(holder.decrypt(ciphertext, client_party(client)), expected)
            other = holder.decrypt(ciphertext, client_party((client + 1) % 4))
            assert not torch.equal(other, expected)


def test_accuracy_with_a_wrong_key_or_none_is_far_below_that_with_the_right_one(
    aligned: Finished,
) -> None:
    result = json.loads((aligned.folder / "result.json").read_text())
    seen = result["accuracy_by_view"]
    assert set(seen) == {"right_key", "wrong_key", "no_key"}
    assert seen["right_key"] == result["accuracy"] > 0.6
    assert max(seen["wrong_key"], seen["no_key"]) < 0.5 * seen["right_key"]


def test_the_ledger_counts_evaluation_by_clients(aligned: Finished) -> None:
    """Four greetings; in each round three clients train and all four measure, both ways."""
    lines = list(csv.DictReader((aligned.folder / "communication.csv").open()))
    counted = [(int(x["round"]), x["purpose"], x["direction"]) for x in lines]
    for direction in ("uplink", "downlink"):
        assert counted.count((0, "greeting", direction)) == 4
        for server_round in (1, 2, 3):
            assert counted.count((server_round, "training", direction)) == 3
            assert counted.count((server_round, "evaluation", direction)) == 4
    assert len(counted) == 2 * (4 + 3 * (3 + 4))
    passed = sum(len(part) for part in aligned.messages)
    assert sum(int(x["payload"]) + int(x["overhead"]) for x in lines) == passed
    wire = aligned.result["communication"]
    assert wire["uplink_bytes"] + wire["downlink_bytes"] == passed
    model = 4 * sum(tensor.numel() for tensor in model_of(aligned).values())
    sent = {x["direction"]: int(x["payload"]) for x in lines if x["purpose"] == "evaluation"}
    assert sent == {"downlink": model, "uplink": 0}


def contains(haystack: list[bytes], needle: Tensor) -> bool:
    """Looks for a tensor's bytes in any of many."""
    content = needle.contiguous().numpy().tobytes()
    assert len(content) >= 128
    return any(content in hay for hay in haystack)


def test_what_is_local_leaves_no_client(kept: Finished) -> None:
    """Neither whole nor as a single filter: in no message, and not in the model that is stored."""
    _, holder = owned(kept.config)
    assert {WEIGHT, BIAS}.isdisjoint(model_of(kept))
    haystack = [*kept.messages, (kept.folder / "model.safetensors").read_bytes()]
    public = reader_of_public(kept)
    for reader in (public, *(holder.adapt(public, client_party(c)) for c in range(4))):
        assert not any(contains(haystack, row) for row in reader.weight[:4])
    final = model_of(kept)
    found = [contains(haystack[:-1], tensor) for tensor in final.values() if tensor.numel() > 31]
    assert all(found)  # the last model went to all clients for evaluation; the search finds it
    assert contains(haystack[-1:], final["head.weight"])
    scalars = {len(m) for m in kept.messages if len(m) > 4 * 1000}
    exchanged = sum(tensor.numel() for tensor in final.values())
    assert kept.result["exchanged_parameters"] == exchanged
    assert kept.result["trainable_parameters"] == exchanged + 96 * 48 + 96
    assert max(scalars) < 4 * exchanged + 1000


def test_what_is_local_was_sent_where_it_is_aggregated(aligned: Finished) -> None:
    """The same search finds the patch embedding of a run that does exchange it."""
    haystack = [*aligned.messages]
    assert contains(haystack, model_of(aligned)[WEIGHT].flatten(1)[0])
    assert contains(haystack, reader_of_public(aligned).weight[0])  # the first round's


def test_what_is_local_learns_from_round_to_round(kept: Finished) -> None:
    lines = [json.loads(x) for x in (kept.folder / "rounds.jsonl").read_text().splitlines()]
    assert lines[-1]["accuracy"] > lines[0]["accuracy"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    seen = kept.result["accuracy_by_view"]
    assert max(seen["wrong_key"], seen["no_key"]) < 0.5 * seen["right_key"]


@pytest.mark.parametrize(
    ("steps", "policy"),
    [
        ("ViT-blockwise", "aggregate"),
        ("ViT-blockwise", "aligned"),
        ("ViT-blockwise", "local"),
        ("EtC", "aligned"),  # in which the server's model needs a kernel for every patch
    ],
)
def test_keys_of_clients_do_without_adaptation(
    steps: str, policy: str, tmp_path: Path, engine: Engine
) -> None:
    done = execute_with_key(
        tmp_path,
        engine,
        encryption__steps=steps,
        encryption__scope="client",
        finetuning__patch_embedding=policy,
        data__limit=80,
        rounds=1,
    )
    line = json.loads((done.folder / "rounds.jsonl").read_text())
    assert (len(line["participants"]), line["failures"]) == (3, [])
    assert 0 < done.result["loss"] < 5
    assert (WEIGHT in model_of(done)) == (policy != "local")
    assert done.result["encryption"] == {
        "steps": list(done.config.encryption.steps),
        "scope": "client",
        "key_id": key_id(SECRET),
        "key_space_bits": done.result["encryption"]["key_space_bits"],
        "falls_to_ciphertexts": done.result["encryption"]["falls_to_ciphertexts"],
        "at_rest": "ring",
        "adapted": False,
        "patch_embedding": policy,
    }


def test_a_key_for_every_image_can_be_trained_with(tmp_path: Path, engine: Engine) -> None:
    done = execute_with_key(tmp_path, engine, encryption__scope="image", data__limit=80, rounds=1)
    assert json.loads((done.folder / "rounds.jsonl").read_text())["failures"] == []
    images, holder = owned(done.config)
    for client, part in enumerate(images.parts):
        ciphertext = opened(done, client_shard(client)).images
        expected = images.train.read(part, 16, 16)
        assert torch.equal(holder.decrypt(ciphertext, client_party(client)), expected)
    assert set(done.result["accuracy_by_view"]) == {"right_key", "wrong_key", "no_key"}


def test_clients_measure_what_the_server_would(
    plain: Finished, tmp_path: Path, engine: Engine
) -> None:
    """On plain images: the same model, the same test images, only shared out."""
    done = execute(
        tmp_path, engine, encryption__steps=[], evaluation__by="clients", rounds=3, **DESCENT
    )
    first, second = model_of(plain), model_of(done)
    assert all(torch.equal(first[name], second[name]) for name in first)
    central, shared_out = (
        [json.loads(x) for x in (r.folder / "rounds.jsonl").read_text().splitlines()]
        for r in (plain, done)
    )
    for one, other in zip(central, shared_out, strict=True):
        assert other["accuracy"] == pytest.approx(one["accuracy"], abs=1e-12)
        assert other["loss"] == pytest.approx(one["loss"], rel=ROUNDING)
    assert done.result["accuracy_by_view"] == {"right_key": done.result["accuracy"]}
    assert not (done.folder / "shards" / "test.safetensors").exists()
    images, _ = owned(done.config)
    assert sorted(np.concatenate(images.test_parts).tolist()) == list(range(len(images.test)))


def told(config: Config) -> str:
    with_key = policies.clients_need_key(config)
    settings = client_settings(config, Path("shards"), ("a",), "cpu", Unaided(), with_key=with_key)
    return settings.config.encryption.key_file


def test_a_worker_is_told_where_the_key_ring_lies_only_if_it_must_know() -> None:
    assert told(load(None)) == ""
    assert told(load(None, {"encryption.adapt": True})) == ""
    assert told(load(None, {"encryption.scope": "image"})) == ""
    ring = str(Path("keys/owner.key").resolve())
    for needed in (
        {"encryption.scope": "client"},
        {"finetuning.patch_embedding": "aligned"},
        {"finetuning.patch_embedding": "local"},
        {"evaluation.by": "clients"},
    ):
        assert told(load(None, needed)) == ring
        assert told(load(None, {**needed, "encryption.steps": []})) == ""
