"""A run that was broken off and goes on ends with the bits of one that was not."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import provenance
from fl_vitlora.experiment.provenance import versions_and_code
from fl_vitlora.experiment.runner import run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.federation.loop import PausedError
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.models.backbone import WEIGHTS_FOLDER
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import DamagedFileError
from fl_vitlora.storage.files import WriteError
from fl_vitlora.strategy import ClientPlan, RoundContext, RoundResult, Update, averaged
from strategies.fedavg import FedAvg
from tests.whole_runs import SMALL

pytestmark = pytest.mark.slow

ROUNDS = 4
CODED = {"compression.uplink": "topk(0.2)+int4", "compression.downlink": "int8"}
VALIDATED = {"data.validation_fraction": 0.2, "evaluation.images": 12}
CASES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "coded both ways": CODED,
    "sparse pieces every other round": {"compression.uplink.patch_embed": "every(2)+int8"},
    "fedsa_lora": {"strategy": "fedsa_lora"},
    "scaffold": {"strategy": "scaffold"},
    "scaffold, coded": {"strategy": "scaffold", **CODED},
    "rolora": {"strategy": "rolora"},
    "ffa_lora": {"strategy": "ffa_lora", **CODED},
    "flora": {"strategy": "flora"},
    "fedex_lora": {"strategy": "fedex_lora"},
    "fedsvd": {"strategy": "fedsvd"},
    "lora_fair": {"strategy": "lora_fair"},
    "fed_sb": {"strategy": "fed_sb"},
    "hetlora": {"strategy": "hetlora", "finetuning.client_ranks": [2, 4, 2, 4]},
    "Flower's FedAdam": {"strategy": "flwr.serverapp.strategy:FedAdam"},
    "Flower's accountant": {
        "strategy": "flwr.serverapp.strategy:DifferentialPrivacyClientSideFixedClipping",
        "strategy.strategy": "flwr.serverapp.strategy:FedAvg",
        "strategy.noise_multiplier": 0.1,
        "strategy.clipping_norm": 1.0,
        "strategy.target_delta": 1e-5,
    },
    "aflora freezes matrices": {
        "finetuning.method": "aflora",
        "finetuning.targets": ["fc1", "q"],
    },
    "sift chooses entries, coded": {"finetuning.method": "sift", **CODED},
    "sara stops entries": {"finetuning.method": "sara"},
    "adarankgrad turns its subspaces": {
        "finetuning.method": "adarankgrad+patch_embed",
        "finetuning.parameters.gap": 1,
    },
    "descent adapts its duals": {
        "finetuning.method": "lora+descent",
        "finetuning.parameters.warm_up": 1,
    },
    "losa reads kept features": {"finetuning.method": "losa"},
    "an agent ties layers": {
        "finetuning.method": "tied_lora",
        "finetuning.parameters.rule": "agent",
    },
    "in secure sums": {"privacy.secure_aggregation": True},
    "with noise": {"privacy.clipping_norm": 1.0, "privacy.noise_multiplier": 0.1},
    "measured by clients": {"finetuning.patch_embedding": "local"},
    "rarely kept": {"checkpoint_every": 3},
    "chosen by validation": VALIDATED,
    "chosen by clients": {"strategy": "fedsa_lora", **VALIDATED},
    "rarely evaluated": {**VALIDATED, "evaluation.every": 2},
    "without patience": {**VALIDATED, "evaluation.patience": 2, "training.learning_rate": 1e-9},
}
# Times differ, and with Flower's random names of nodes a message by a byte or two.
NOT_THE_SAME = ("seconds", "transfer_seconds", "communication", "uplink_bytes", "downlink_bytes")
WIRE = ("overhead", "total")


def experiment(folder: Path, name: str, options: dict[str, Any]) -> Config:
    paths = {"out": str(folder / name), "encryption.key_file": str(folder / "owner.key")}
    return configuration.load(None, {**SMALL, "rounds": ROUNDS, **paths, **options})


def play(config: Config, engine: Engine, *, until: int = ROUNDS, resume: bool = False) -> None:
    """Runs until some round has ended, and is told to pause then; or to the end."""
    watch = Watch()

    def show(line: dict[str, Any]) -> None:
        if line["round"] == until < ROUNDS:
            watch.pause.set()

    watch = dataclasses.replace(watch, show_round=show)
    run(config, strategies.load_for(config), watch, engine=engine, resume=resume)


def left(folder: Path) -> dict[str, Any]:
    """Reads all that a run leaves and that is to be the same in every run of its kind."""
    result = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    sent = list(csv.DictReader((folder / "communication.csv").open()))
    return {
        "result": {k: v for k, v in result.items() if k not in NOT_THE_SAME},
        "rounds": [{k: v for k, v in line.items() if k not in NOT_THE_SAME} for line in lines],
        "model": (folder / "model.safetensors").read_bytes(),
        "best": (folder / "best_model.safetensors").read_bytes(),
        "messages": [{k: v for k, v in one.items() if k not in WIRE} for one in sent],
        "overhead": [int(one["overhead"]) for one in sent],
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Returns True if two runs left the same, except for a byte or two around a message."""
    overheads = pytest.approx(other["overhead"], abs=6)
    return one | {"overhead": []} == other | {"overhead": []} and one["overhead"] == overheads


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_goes_on_is_the_run_that_was_not_broken_off(
    case: str, tmp_path: Path, engine: Engine
) -> None:
    whole = experiment(tmp_path, "whole", CASES[case])
    play(whole, engine)
    broken = experiment(tmp_path, "broken", CASES[case])
    with pytest.raises(PausedError, match=r"after round [12] of 4"):
        play(broken, engine, until=1)
    play(broken, engine, resume=True)
    assert same(left(tmp_path / "broken"), left(tmp_path / "whole"))
    assert not (tmp_path / "broken" / "checkpoint").exists()


@pytest.mark.parametrize("case", ["as it comes", "measured by clients"])
def test_a_run_that_could_not_write_its_result_writes_the_same_when_it_goes_on(
    case: str, tmp_path: Path, engine: Engine
) -> None:
    """All rounds are done and saved, and nothing is evaluated again."""
    play(experiment(tmp_path, "whole", CASES[case]), engine)
    broken = experiment(tmp_path, "broken", CASES[case])
    obstacle = tmp_path / "broken" / "plots" / "accuracy_over_rounds.png"
    watch = dataclasses.replace(Watch(), show_round=lambda _: obstacle.mkdir(exist_ok=True))
    with pytest.raises((OSError, WriteError)):
        run(broken, strategies.load_for(broken), watch, engine=engine)
    assert not (tmp_path / "broken" / "result.json").exists()
    obstacle.rmdir()
    play(broken, engine, resume=True)
    told = left(tmp_path / "whole")
    assert same(left(tmp_path / "broken"), told)
    known = {name: told["result"][name] for name in ("classification", "client_accuracy")}
    assert [name for name, value in known.items() if value is not None] == [
        "client_accuracy" if case == "measured by clients" else "classification"
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndsWithTheSecond(FedAvg):
    """FedAvg with work and metrics for each client, that ends the run with its second round."""

    def plan(self, server_round: int, *, client: int = 0) -> ClientPlan:
        return ClientPlan(epochs=1 + client % 2, rate=1 / (1 + client))

    def aggregate(
        self,
        model: State,
        updates: Sequence[Update],
        state: State,
        context: RoundContext | None = None,
    ) -> tuple[State, State]:
        assert context is not None
        return averaged(model, updates), {"round": torch.tensor(float(context.round))}

    def metrics(
        self, model: State, updates: Sequence[Update], state: State
    ) -> dict[str, float | dict[int, float]]:
        return {"round": float(state["round"]), "steps": {u.client: u.steps for u in updates}}

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        return server_round >= 2 and result.accuracy >= 0


def test_a_run_that_its_strategy_ends_is_whole_and_ends_there_again(
    tmp_path: Path, engine: Engine
) -> None:
    whole = experiment(tmp_path, "whole", CODED)
    run(whole, EndsWithTheSecond(), engine=engine)
    told = left(tmp_path / "whole")
    ended = [told["result"][name] for name in ("rounds", "rounds_planned", "stopped")]
    assert ended == [2, ROUNDS, "strategy"]
    lines = [json.loads(line) for line in (tmp_path / "whole" / "rounds.jsonl").open()]
    assert [line["strategy_metrics"]["round"] for line in lines] == [1, 2]
    for line in lines:
        steps = line["strategy_metrics"]["steps"]
        assert steps.keys() == {str(client) for client in line["participants"]}
        assert all(count % (1 + int(client) % 2) == 0 for client, count in steps.items())
    assert set(told["result"]["accuracy_by_view"]) == {"right_key", "wrong_key", "no_key"}
    broken, watch = experiment(tmp_path, "broken", CODED), Watch()
    watch = dataclasses.replace(watch, show_round=lambda _: watch.pause.set())
    with pytest.raises(PausedError):
        run(broken, EndsWithTheSecond(), watch, engine=engine)
    run(broken, EndsWithTheSecond(), engine=engine, resume=True)
    assert same(left(tmp_path / "broken"), told)


@pytest.fixture(scope="module")
def paused(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> tuple[Path, dict[str, Any]]:
    """A folder with a run that paused with two checkpoints, and what is left of it undisturbed."""
    folder = tmp_path_factory.mktemp("paused")
    play(experiment(folder, "whole", CODED), engine)
    with pytest.raises(PausedError):
        play(experiment(folder, "run", CODED), engine, until=2)
    return folder, left(folder / "whole")


def copy_of(paused: Path, place: Path) -> Config:
    shutil.copytree(paused, place, dirs_exist_ok=True)
    return experiment(place, "run", CODED)


def newest(folder: Path, pattern: str) -> Path:
    return max((folder / "run").glob(pattern))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("pattern", ["checkpoint/round-*", "checkpoint/clients-*"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    pattern: str, paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    folder, expected = paused
    config = copy_of(folder, tmp_path)
    flip(newest(tmp_path, pattern))
    play(config, engine, resume=True)
    assert same(left(tmp_path / "run"), expected)


def test_what_came_after_the_checkpoint_is_cut_off(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    folder, expected = paused
    config = copy_of(folder, tmp_path)
    for name in ("rounds.jsonl", "checkpoint/ledger.jsonl"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write('{"round": 99, "half a li')
    play(config, engine, resume=True)
    assert same(left(tmp_path / "run"), expected)


@pytest.mark.parametrize(
    "pattern", ["rounds.jsonl", "checkpoint/ledger.jsonl", "shards/client-00001*", "shards/test*"]
)
def test_a_damaged_file_that_there_is_one_of_ends_the_run_with_its_name(
    pattern: str, paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    config = copy_of(paused[0], tmp_path)
    damaged = newest(tmp_path, pattern)
    if pattern.endswith("jsonl"):
        damaged.write_bytes(damaged.read_bytes()[5:])
    else:
        flip(damaged)
    with pytest.raises((DamagedFileError, RuntimeError), match=damaged.name):
        play(config, engine, resume=True)


def test_a_run_begins_again_before_its_first_checkpoint_and_not_after_it(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    folder, expected = paused
    config = copy_of(folder, tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    with pytest.raises(UserError, match="has rounds, but no checkpoint from which the run"):
        play(config, engine, resume=True)
    rounds = tmp_path / "run" / "rounds.jsonl"
    rounds.write_text(rounds.read_text().splitlines()[0] + "\n")  # as before the first checkpoint
    (tmp_path / "run" / "shards" / "client-00002.safetensors").unlink()
    play(config, engine, resume=True)
    assert same(left(tmp_path / "run"), expected)


def test_a_run_that_begins_again_needs_the_key_of_its_shards(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    config = copy_of(paused[0], tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / "rounds.jsonl").unlink()
    ring = tmp_path / "owner.key"
    ring.unlink()
    with pytest.raises(
        UserError, match=f"key ring {ring}: this file does not exist; a run can continue only"
    ):
        play(config, engine, resume=True)
    assert not ring.exists()


def test_a_run_does_not_go_on_with_other_weights(tmp_path: Path, engine: Engine) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(WEIGHTS_FOLDER / "vit_letters_16.safetensors", weights)
    config = experiment(tmp_path, "run", {"model.weights": str(weights)})
    with pytest.raises(PausedError):
        play(config, engine, until=1)
    tensors = load_file(weights)
    tensors["blocks.0.attn.qkv.weight"][0, 0] += 1e-3
    save_file(tensors, weights)
    with pytest.raises(UserError, match=r"began with weights [0-9a-f]{12} and can continue only"):
        play(config, engine, resume=True)


def test_a_run_that_goes_on_with_another_library_or_strategy_tells_it(
    paused: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = copy_of(paused[0], tmp_path)
    now = versions_and_code(FedAvg())
    mended = {**now, "NumPy": "0.1", "FedAvg": "mended"}
    monkeypatch.setattr(provenance, "versions_and_code", lambda strategy: mended)
    play(config, engine, resume=True)
    (told,) = left(tmp_path / "run")["result"]["changes"]
    assert told["after_round"] in (2, 3)  # the next round had begun when it was told to pause
    assert told["changed"] == {
        "NumPy": [now["NumPy"], "0.1"],
        "FedAvg": [now["FedAvg"], "mended"],
    }


def test_what_was_half_written_or_is_run_again_is_gone(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    config = copy_of(paused[0], tmp_path)
    half = tmp_path / "run" / "shards" / ".client-00000.safetensors.1234.tmp"
    half.write_bytes(b"half")
    traces = [tmp_path / "run" / "failures" / f"round-0000{n}-client-00001.txt" for n in (1, 4)]
    traces[0].parent.mkdir()
    for trace in traces:
        trace.write_text("no reply")
    play(config, engine, resume=True)
    assert not half.exists()
    assert [trace.exists() for trace in traces] == [True, False]


def test_a_run_goes_on_with_another_number_of_workers(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    folder, expected = paused
    config = copy_of(folder, tmp_path)
    one = dataclasses.replace(config, engine=dataclasses.replace(config.engine, workers=1))
    play(one, engine, resume=True)
    assert same(left(tmp_path / "run"), expected)


def test_a_key_ring_may_have_moved(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    folder, expected = paused
    config = copy_of(folder, tmp_path)
    moved = (tmp_path / "owner.key").rename(tmp_path / "moved.key")
    ring = dataclasses.replace(config.encryption, key_file=str(moved))
    play(dataclasses.replace(config, encryption=ring), engine, resume=True)
    assert same(left(tmp_path / "run"), expected)


def test_shards_under_another_key_are_another_run(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    from fl_vitlora.experiment.owner_keys import rotate_key

    config = copy_of(paused[0], tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path / 'run'} contains a run that has not ended"):
        rotate_key(config, [tmp_path / "run"])
    shards, elsewhere = tmp_path / "run" / "shards", tmp_path / "elsewhere"
    shutil.copytree(shards, elsewhere)
    rotate_key(config, [elsewhere])
    shutil.copy(elsewhere / "client-00001.safetensors", shards)
    with pytest.raises(
        UserError, match=r"shards of a run must be encrypted with one key, .*client-00001"
    ):
        play(config, engine, resume=True)
    shutil.copytree(elsewhere, shards, dirs_exist_ok=True)
    with pytest.raises(
        UserError, match=r"began with key \w+ and can continue only with this value"
    ):
        play(config, engine, resume=True)


def test_two_processes_are_not_at_one_run(
    paused: tuple[Path, dict[str, Any]], tmp_path: Path, engine: Engine
) -> None:
    config = copy_of(paused[0], tmp_path)
    other = RunFolder.reopen(tmp_path / "run")
    with pytest.raises(UserError, match="another process is working on this run"):
        play(config, engine, resume=True)
    del other


def test_what_clients_remember_is_for_the_owner_alone(paused: tuple[Path, dict[str, Any]]) -> None:
    files = list((paused[0] / "run" / "checkpoint").glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_a_secret_of_a_secure_sum_is_not_written_down(tmp_path: Path, engine: Engine) -> None:
    options = {"privacy.secure_aggregation": True, "strategy": "rolora"}
    with pytest.raises(PausedError):
        play(experiment(tmp_path, "run", options), engine, until=2)
    written = b"".join(
        path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()
    )
    assert b"private-key" not in written
    assert b"rested" in written  # which is beside it in the same record


def test_checkpoints_do_not_pile_up(tmp_path: Path, engine: Engine) -> None:
    seen: list[int] = []
    config = experiment(tmp_path, "run", {**CODED, "rounds": 5, "fraction": 0.25})

    def show(line: dict[str, Any]) -> None:
        seen.append(len(list((tmp_path / "run" / "checkpoint").iterdir())))

    run(config, strategies.load_for(config), Watch(show_round=show), engine=engine)
    assert len(seen) == 5
    assert max(seen) <= 1 + 2 + 5  # the ledger, two checkpoints, a file for each client at most


def test_a_run_that_an_image_keeps_from_beginning_leaves_no_folder(
    tmp_path: Path, engine: Engine
) -> None:
    images = tmp_path / "images"
    for label in ("cat", "dog"):
        (images / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (16, 16)).save(images / label / f"{number}.png")
    image = images / "dog" / "3.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:45])
    options = {"data.name": str(images), "data.partition": "iid", "clients": 2, "data.limit": None}
    config = experiment(tmp_path, "run", options)
    with pytest.raises(UserError, match=f"image {image} cannot be read"):
        play(config, engine)
    assert not (tmp_path / "run").exists()
    image.write_bytes(whole)
    play(config, engine)
    assert (tmp_path / "run" / "result.json").exists()
