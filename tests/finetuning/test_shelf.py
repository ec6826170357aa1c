"""Every part that ships keeps every rule of the contract, and every rule catches what breaks it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig, load
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.finetuning.part import BatchTerm, Part
from fl_vitlora.state import State, count
from fl_vitlora.testing.method import RULES, MethodError, check_method, findings
from tests.conftest import random_vit

SUMS = [
    *PARTS,
    "lora+patch_embed",
    "bias+norm",
    "dora+patch_embed",
    "lora_xs+patch_embed",
    "lora+descent",
]


@pytest.mark.parametrize("method", SUMS)
def test_every_shipped_method_keeps_every_rule(method: str):
    found = findings(method)
    assert [finding for finding in found if finding.problem] == []
    assert len(found) == len(RULES)


@pytest.mark.parametrize("method", ["lora+patch_embed", "bias+norm", "dora", "lora_xs"])
def test_a_method_fits_a_published_vit(method: str):
    """A random ViT-Ti/16 of timm, adapted, moved, merged and loaded into the plain model."""
    arguments: dict[str, Any] = {"num_classes": 3, "img_size": 32, "depth": 2}

    def make() -> Any:
        return timm.create_model("vit_tiny_patch16_224", **arguments).eval()

    model = make().requires_grad_(requires_grad=False)
    methods.prepare(model, FineTuningConfig(method=method), 0)
    torch.manual_seed(0)
    for parameter in methods.trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model.double()(images)
    methods.merge(model)
    plain = make().double()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(images), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("method", "trained"),
    [
        # a block has biases of qkv 288, proj 96, fc1 288, fc2 96 and of two norms 96 each
        ("bias", 6 * (288 + 96 + 288 + 96 + 2 * 96) + 96 + 970),
        ("norm", 6 * 2 * 2 * 96 + 2 * 96 + 970),
        ("bias+norm", 6 * (288 + 96 + 288 + 96 + 4 * 96) + 2 * 96 + 970),
        ("dora", 6 * 2 * (2 * 4 * 96 + 96) + 970),
        ("lora_xs", 6 * 2 * 4 * 4 + 970),
        ("adarankgrad", 4 * 6 * 2 * 4 * 96 + 970),
        ("feature_statistics", 2 * 96 + 970),
        ("descent", 6 + 7 + 970),
    ],
)
def test_a_method_trains_as_many_numbers_as_one_can_count(method: str, trained: int):
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method=method), 0)
    assert count(methods.trainable(model)) == trained


def test_doras_rows_have_the_trained_lengths():
    """The rows of the merged weight are as long as the magnitudes say, wherever B·A points."""
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="dora", targets=("q",)), 0)
    torch.manual_seed(0)
    own = methods.trainable(model)
    for name, parameter in own.items():
        parameter.data = torch.rand_like(parameter) + (2.0 if "magnitude" in name else 0.0)
    expected = own["lora:blocks.0.attn.qkv.adapters.q.magnitude"].detach().clone()
    methods.merge(model)
    weight = model.get_parameter("blocks.0.attn.qkv.weight")[:96]
    assert torch.allclose(weight.norm(dim=1), expected, rtol=1e-5)


class Gate(nn.Module):
    """Multiplies its input by a trained vector, and by what a faulty method makes of it."""

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        self.strange = nn.Parameter(torch.full((96,), start))
        self.extra = nn.Parameter(torch.zeros(96))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.strange + self.extra


@dataclass(frozen=True, kw_only=True)
class Gates(Part):
    cannot_merge = "its gates are layers of their own"

    def attach(self, model: Any) -> None:
        for block in model.blocks:
            block.mlp.add_module("drop2", self.gate())

    def gate(self) -> nn.Module:
        return Gate()

    def trained(self, model: nn.Module) -> Collection[str]:
        return [n for n, _ in model.named_parameters() if n.endswith((".strange", ".extra"))]

    def group(self, name: str) -> str:
        del name
        return "lora"


@dataclass(frozen=True, kw_only=True)
class NamesNothing(Gates):
    def trained(self, model: nn.Module) -> Collection[str]:
        return [*Gates.trained(self, model), "no.such.tensor"]


@dataclass(frozen=True, kw_only=True)
class UnknownGroup(Gates):
    def group(self, name: str) -> str:
        return "gates"


class System(Gate):
    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator()
        draw.seed()
        self.extra.data = 1e-6 * torch.rand(96, generator=draw)


@dataclass(frozen=True, kw_only=True)
class DrawsAnew(Gates):
    def gate(self) -> nn.Module:
        return System()


@dataclass(frozen=True, kw_only=True)
class Spoils(Gates):
    def attach(self, model: Any) -> None:
        Gates.attach(self, model)
        model.blocks[0].mlp.fc1.bias.data += 1


@dataclass(frozen=True, kw_only=True)
class NoIdentity(Gates):
    def gate(self) -> nn.Module:
        return Gate(1.5)


class Idle(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.strange + self.extra * 0


@dataclass(frozen=True, kw_only=True)
class TrainsIdly(Gates):
    def gate(self) -> nn.Module:
        return Idle()


class Squared(Gate):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.strange.square() + self.extra


class Counting(Gate):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.get_buffer("seen").add_(1)
        return super().forward(x)


@dataclass(frozen=True, kw_only=True)
class Counts(Gates):
    def gate(self) -> nn.Module:
        return Counting()


class Secret(Gate):
    """Has a frozen tensor that differs from party to party."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator()
        draw.seed()
        self.register_buffer("fixed", torch.rand(96, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.strange + self.extra * self.get_buffer("fixed")


@dataclass(frozen=True, kw_only=True)
class DiffersUnseen(Gates):
    def gate(self) -> nn.Module:
        return Secret()


@dataclass(frozen=True, kw_only=True)
class ForgetsToMerge(Gates):
    cannot_merge = ""


@dataclass(frozen=True, kw_only=True)
class SaysItMoves(Gates):
    changes_start = "its gates are not one"


@dataclass(frozen=True, kw_only=True)
class KeepsNothing(Gates):
    personal = (".own",)


@dataclass(frozen=True, kw_only=True)
class SaysStackable(Gates):
    stackable = True


@dataclass(frozen=True, kw_only=True)
class RestsNothing(Gates):
    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        del memory
        return (".lora_A",) if server_round % 2 else ()


@dataclass(frozen=True, kw_only=True)
class Shrinks(Gates):
    def retract(self, tensors: State) -> State:
        return {n: t / 2 for n, t in tensors.items() if n.endswith(".strange")}


@dataclass(frozen=True, kw_only=True)
class Overwrites(Gates):
    def retract(self, tensors: State) -> State:
        for tensor in tensors.values():
            tensor.zero_()
        return tensors


@dataclass(frozen=True, kw_only=True)
class SaysExact(Gates):
    """Squares its gates, which can be merged into the layer before them."""

    cannot_merge = ""

    def attach(self, model: Any) -> None:
        for block in model.blocks:
            block.mlp.add_module("drop2", Squared())

    def merge(self, model: Any) -> None:
        for block in model.blocks:
            gate = block.mlp.drop2
            block.mlp.fc2.weight.data *= gate.strange.data.square().unsqueeze(1)
            block.mlp.fc2.bias.data *= gate.strange.data.square()
            block.mlp.fc2.bias.data += gate.extra.data
            block.mlp.drop2 = nn.Identity()

    def averages_exactly(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class PenalisesByNorm(Gates):
    def penalty(self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
        squares = [(p - anchor[name]).square().sum() for name, p in parameters.items()]
        return torch.stack(squares).sum().sqrt()


@dataclass(frozen=True, kw_only=True)
class LeavesAHook(Gates):
    @contextmanager
    def watch(self, model: Any) -> Iterator[BatchTerm]:
        model.blocks[0].register_forward_hook(lambda _module, _inputs, out: out)
        yield lambda labels: 0.0


@dataclass(frozen=True, kw_only=True)
class MeasuresNothing(Gates):
    measured = (".extra",)


@dataclass(frozen=True, kw_only=True)
class MovesWhileWatching(Gates):
    @contextmanager
    def watch(self, model: Any) -> Iterator[BatchTerm]:
        model.blocks[0].mlp.drop2.extra.data += 1
        yield lambda labels: 0.0


@dataclass(frozen=True, kw_only=True)
class SaysFrozen(Gates):
    frozen_backbone = True


@dataclass(frozen=True, kw_only=True)
class ForgetsItsTensors(Gates):
    """Reads features that do not change, but the gates change the model's outputs."""

    frozen_backbone = True

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        del model
        return images.mean(dim=(2, 3)).repeat(1, 32)


FAULTY = [
    (NamesNothing, 0, "trains no.such.tensor, an unknown tensor"),
    (UnknownGroup, 0, "'gates' is not a group"),
    (DrawsAnew, 1, "differs when the model is built twice with the same seed"),
    (Spoils, 2, "attaching changes the pre-trained tensor blocks.0.mlp.fc1.bias"),
    (NoIdentity, 3, "before any training the method changes the model's outputs"),
    (SaysItMoves, 3, "declares changes_start, but the outputs do not change"),
    (TrainsIdly, 4, "extra is trained but gets no gradient"),
    (Counts, 5, "drop2.seen is frozen, but two training steps change it"),
    (DiffersUnseen, 6, "a second model with the exported tensors differ by"),
    (ForgetsToMerge, 7, "the merged model is not a plain timm model"),
    (KeepsNothing, 8, "personal contains '.own'"),
    (SaysStackable, 9, "no `multiply` applies"),
    (SaysExact, 10, "it declares averages_exactly, but the aggregation gap is"),
    (PenalisesByNorm, 11, "penalty of 2 clients that share a batch is"),
    (RestsNothing, 12, "rests returns '.lora_A'"),
    (Shrinks, 13, "a second call of retract changes lora:blocks.0.mlp.drop2.strange again"),
    (Overwrites, 13, "changes the tensors in its argument"),
    (LeavesAHook, 14, "a hook is left on blocks."),
    (MeasuresNothing, 14, "extra is not set to a measured value"),
    (MovesWhileWatching, 14, "`watch` changes lora:blocks.0.mlp.drop2.extra"),
    (SaysFrozen, 15, "features that clients keep depend on tensors that the method trains"),
    (ForgetsItsTensors, 15, "the logits of features differ from those of the model"),
]


def test_the_method_that_faults_are_made_of_is_sound():
    check_method(Gates())


@pytest.mark.parametrize(("kind", "rule", "problem"), FAULTY)
def test_each_rule_catches_what_breaks_it(kind: type[Gates], rule: int, problem: str):
    broken = {f.rule: f.problem for f in findings(kind()) if f.problem}
    assert problem in broken[RULES[rule].told]
    with pytest.raises(MethodError):
        check_method(kind())


def test_unknown_names_and_parameters_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'norm'"):
        load(None, {"finetuning.method": "bias+nrom"})
    with pytest.raises(UserError, match="occurs twice"):
        load(None, {"finetuning.method": "bias+bias"})
    with pytest.raises(UserError, match="full trains every tensor"):
        load(None, {"finetuning.method": "full+norm"})
    config = load(None, {"finetuning.method": "dora", "finetuning.parameters.rnk": 3})
    with pytest.raises(UserError, match=r"unknown parameter of method dora 'rnk'.*'rank'"):
        shelf.method_of(config.finetuning)
    for name in ("tests.finetuning.test_shelf:Gats", "tests.no_such_module:Gates"):
        with pytest.raises(UserError, match=r"did you mean 'Gates'|cannot be imported"):
            shelf.method_of(FineTuningConfig(method=name))
