"""A method that nobody has seen before: one new file in a package of its own, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from fl_vitlora.communication.groups import group_of
from fl_vitlora.communication.lanes import read_lanes
from fl_vitlora.config import TrainingConfig, load
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.experiment.server_model import Server, make_server
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.wire.byte_counts import reference_sizes
from fl_vitlora.training.optimizers import make_optimizer
from tests.made_up_places import simulate_in

METHOD = "made_up_methods.gates:Gates"
SOURCE = """
from dataclasses import dataclass

import torch
from torch import nn

from fl_vitlora.finetuning.part import Part


class Gate(nn.Module):
    def __init__(self, width, start):
        super().__init__()
        self.zzz_gate = nn.Parameter(torch.full((width,), start))
        self.mine = nn.Parameter(torch.zeros(width))
        self.start = start

    def forward(self, x):
        return x * self.zzz_gate / self.start + self.mine


@dataclass(frozen=True, kw_only=True)
class Gates(Part):
    cannot_merge = "its gates are layers of their own"
    start: float = 1.0

    def attach(self, model):
        for block in model.blocks:
            block.mlp.add_module("drop2", Gate(block.mlp.fc2.out_features, self.start))

    def trained(self, model):
        names = [name for name, _ in model.named_parameters()]
        return [name for name in names if name.endswith((".zzz_gate", ".mine"))]

    def group(self, name):
        return "head" if name.endswith(".zzz_gate") else "lora"

    def rests(self, server_round, memory):
        return (".mine",) if server_round == 1 else ()

    def retract(self, tensors):
        return {n: t.clamp(max=0.5) for n, t in tensors.items() if n.endswith(".zzz_gate")}
"""
SMALL = ["--clients", "2", "--rounds", "2", "--set", "data.limit=40"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of one file."""
    folder = tmp_path_factory.mktemp("place")
    package = folder / "made_up_methods"
    package.mkdir()
    (package / "gates.py").write_text(SOURCE, encoding="utf-8")
    return folder


def server_of(method: str, **parameters: Any) -> Server:
    config = load(None, {"finetuning.method": method, **parameters})
    return make_server(prepare_model(config, 10, "cpu"), lambda origin: origin)


def test_a_made_up_method_runs_over_ray_and_its_groups_are_its_own(place: Path):
    done = simulate_in(
        place,
        *("--method", METHOD, *SMALL, "--out", "run"),
        *("--set", "finetuning.parameters.start=0.5", "--set", "compression.uplink.head=int8"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((place / "run" / "result.json").read_text())
    lines = [json.loads(line) for line in (place / "run" / "rounds.jsonl").open()]
    plain = sum(tensor.numel() for tensor in server_of("full").whole.values())
    assert result["total_parameters"] == plain
    assert result["trainable_parameters"] == 970 + 6 * 2 * 96
    sent = [line["payload_by_group"] for line in lines]
    # `mine` rests in round 1; two clients are sent it in round 2, and send it: four bytes a number
    assert [groups.get("other", 0) for groups in sent] == [0, 4 * 6 * 96 * 2]
    # `zzz_gate` travels with the head: four bytes a number down, and less than two, in int8, up
    numbers = 2 * (970 + 6 * 96)
    assert all(4 * numbers < groups["head"] < 6 * numbers for groups in sent)


@pytest.fixture
def importable(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(place))


@pytest.mark.usefixtures("importable")
def test_the_reference_does_not_depend_on_a_made_up_method(monkeypatch: pytest.MonkeyPatch):
    """Names, bits and measured bytes of full fine-tuning are those of the plain model."""
    made_up, full = server_of(METHOD), server_of("full")
    assert made_up.whole.keys() == full.whole.keys()
    assert all(torch.equal(made_up.whole[name], t) for name, t in full.whole.items())
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    classes = tuple("0123456789")
    assert reference_sizes(made_up.whole, classes) == reference_sizes(full.whole, classes)
    assert made_up.plain.keys() == full.plain.keys()


@pytest.mark.usefixtures("importable")
def test_a_strange_suffix_has_the_rate_and_the_codec_of_its_group():
    names = methods.trainable(server_of(METHOD).backbone.model)
    gate, mine = "head:blocks.0.mlp.drop2.zzz_gate", "lora:blocks.0.mlp.drop2.mine"
    assert {gate, mine, "head.weight"} <= names.keys()
    training = TrainingConfig(head_rate=0.5, body_rate=7.0)
    chosen = {name: names[name] for name in (gate, mine)}
    rates = [group["lr"] for group in make_optimizer(chosen, training, 1.0).param_groups]
    assert rates == [0.5, 1.0]
    assert (group_of(gate), group_of(mine)) == ("head", "other")
    lanes = read_lanes({"head": "int8"}, "float32")
    assert [str(lanes.of(name).codec) for name in (gate, mine)] == ["int8", "float32"]


def test_a_method_that_only_a_file_names_is_not_imported(place: Path):
    (place / "method.yaml").write_text(f"finetuning:\n  method: lora+{METHOD}\n", encoding="utf-8")
    refused = simulate_in(place, "--config", "method.yaml", *SMALL)
    assert refused.returncode == 2
    assert "a file names this code" in refused.stderr
    assert f"--trust-strategy {METHOD}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_the_command_line_checks_a_file_and_says_what_it_breaks(place: Path):
    passed = simulate_in(place, "--check-method", "made_up_methods/gates.py")
    assert passed.returncode == 0, passed.stderr
    assert "17 rules, 0 failed" in passed.stdout
    broken = SOURCE.replace("x * self.zzz_gate / self.start", "x * self.zzz_gate")
    (place / "broken.py").write_text(broken, encoding="utf-8")
    failed = simulate_in(
        place, "--check-method", "broken.py", "--set", "finetuning.parameters.start=0.5"
    )
    assert failed.returncode != 0
    assert "before any training the method changes the model's outputs" in failed.stdout
