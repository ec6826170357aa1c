"""Every optimiser of the table keeps the same promises, and so does one that nobody has seen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import Config, TrainingConfig, load
from fl_vitlora.config.optimizer_names import OPTIMIZERS
from fl_vitlora.data.shards import Shard
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.population.sampling import trained_together
from fl_vitlora.state import State
from fl_vitlora.training.cohort import LocalJob, can_share_a_batch, train_together, why_alone
from fl_vitlora.training.gpu_memory import make_trainer
from fl_vitlora.training.local import LocalTask, Trained, train
from fl_vitlora.training.optimizers import Groups, Optimizer, make_optimizer, optimizer_of
from fl_vitlora.training.stacking import Stack
from tests.conftest import MakeBackbone

SIZES = (9, 4, 13)  # images of each client
RATE = 0.01
# Doubles add and multiply with relative errors of about 1e-16. An optimiser of Adam's kind divides
# a gradient by its own size and `eps`, at least 1e-10, which can make much of a small error. The
# tensors of clients in one batch may differ from those of clients alone by this share of the way;
# 6e-14 of it was measured.
SHARE_OF_THE_WAY = 1e-10


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def training(optimizer: str, **changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"optimizer": optimizer, "batch_size": 4, "epochs": 2, **changes})


def jobs(backbone: Backbone, sizes: Sequence[int] = SIZES) -> list[LocalJob]:
    """Makes clients that start with random tensors, whatever the model holds now."""
    shapes = {name: p.shape for name, p in methods.trainable(backbone.model).items()}
    made = []
    for client, size in enumerate(sizes):
        random = torch.Generator().manual_seed(client)
        start = {n: 0.1 * torch.randn(shape, generator=random) for n, shape in shapes.items()}
        pixels = (size, *backbone.image_shape)
        shard = Shard(
            images=torch.randint(0, 256, pixels, generator=random, dtype=torch.uint8),
            labels=torch.randint(0, 10, (size,), generator=random),
        )
        task = LocalTask(learning_rate=RATE)
        reader = reader_of(backbone)
        made.append(LocalJob(start=start, shard=shard, task=task, generator=random, reader=reader))
    return made


def alone(backbone: Backbone, config: TrainingConfig) -> list[Trained]:
    return [
        train(backbone, job.start, job.shard, config=config, task=job.task, generator=job.generator)
        for job in jobs(backbone)
    ]


def largest(state: State, other: State) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in state.items())


def test_every_line_of_the_table_leads_to_an_entry():
    entries = [optimizer_of(name) for name in OPTIMIZERS]
    assert all(isinstance(entry, Optimizer) for entry in entries)
    assert len({entry.told for entry in entries}) == len(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_entry_says_in_one_line_what_it_is(name: str):
    told = optimizer_of(name).told
    assert "\n" not in told
    assert told.endswith(").")


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if optimizer_of(name).entrywise])
def test_clients_in_one_batch_get_what_each_gets_alone(name: str, make_backbone: MakeBackbone):
    """The bound is a share of how far training moved the tensors of that client."""
    backbone, config = make_backbone(), training(name, weight_decay=0.1)
    backbone.model.double()
    assert can_share_a_batch(backbone.model, config)
    expected, starts = alone(backbone, config), [job.start for job in jobs(backbone)]
    given = jobs(backbone)
    found = train_together(Stack(backbone.model), given, config=config)
    for one, other, start in zip(found, expected, starts, strict=True):
        way = largest(other.state, start)
        assert way > RATE / 10
        assert largest(one.state, other.state) <= SHARE_OF_THE_WAY * way
        assert one.steps == other.steps


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_step_moves_every_trained_tensor(name: str, make_backbone: MakeBackbone):
    backbone = make_backbone()
    backbone.model.double()
    job = jobs(backbone, [4])[0]
    config = training(name, epochs=1)
    done = train(
        backbone, job.start, job.shard, config=config, task=job.task, generator=job.generator
    )
    assert done.steps == 1
    unmoved = [name for name, t in done.state.items() if torch.equal(t, job.start[name])]
    assert unmoved == []


NAMES = ("patch_embed.proj.weight", "head.weight", "blocks.0.mlp.fc1.weight", "lora.x.lora_A")


def one_step(config: TrainingConfig, rate: float = RATE) -> State:
    """Returns how far one step moves four tensors, one of each group."""
    random = torch.Generator().manual_seed(0)
    parameters = {n: nn.Parameter(torch.randn(3, 4, generator=random)) for n in NAMES}
    for parameter in parameters.values():
        parameter.grad = torch.randn(3, 4, generator=random)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    make_optimizer(parameters, config, rate).step()
    return {name: p.detach() - before[name] for name, p in parameters.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_patch_embedding_head_and_body_have_rates_of_their_own(name: str):
    factors = {"patch_embed_rate": 3.0, "head_rate": 0.5, "body_rate": 2.0}
    plain = one_step(training(name, **dict.fromkeys(factors, 1.0)))
    scaled = one_step(training(name, **factors))
    for tensor, factor in zip(NAMES, (*factors.values(), 1.0), strict=True):
        assert plain[tensor].abs().min() > 0
        torch.testing.assert_close(scaled[tensor], factor * plain[tensor], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_round_remembers_nothing(name: str):
    first, second = (one_step(training(name)) for _ in range(2))
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in NAMES)


def kept(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the hyper-parameters of an optimiser, without its tensors."""
    return {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}


HANDED_ON: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(
        p, lr=RATE, betas=(0.7, 0.999), weight_decay=0.1, fused=True
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=RATE, betas=(0.7, 0.999), weight_decay=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=RATE, betas=(0.7, 0.999), weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=RATE, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.8, weight_decay=0.1),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_the_settings_reach_the_optimiser_of_pytorch(name: str):
    config = TrainingConfig(optimizer=name, beta1=0.7, momentum=0.8, weight_decay=0.1)
    weight = nn.Parameter(torch.ones(1))
    made, expected = make_optimizer({"a.lora_A": weight}, config, RATE), HANDED_ON[name]([weight])
    assert type(made) is type(expected)
    assert kept(made) == kept(expected)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("AdamW", "did you mean 'adamw'"),
        ("sdg", "did you mean 'sgd'"),
        ("", "choices: adagrad, adam, adamw, nadam, sgd"),
        (3, "expected a name such as adamw, got 3"),
        (["sgd"], "expected a name such as adamw"),
    ],
)
def test_an_unknown_name_is_answered_in_one_line(given: Any, told: str):
    with pytest.raises(UserError, match=told) as refused:
        load(None, {"training.optimizer": given})
    assert "training.optimizer" in str(refused.value)
    assert "\n" not in str(refused.value)


def add(monkeypatch: pytest.MonkeyPatch, name: str, entry: Optimizer) -> None:
    """Adds a module with one entry, and one line to the table, for the time of a test."""
    module = ModuleType(f"optimiser_{name}")
    vars(module)["ENTRY"] = entry
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(OPTIMIZERS, name, f"{module.__name__}:ENTRY")


NEW_FILE = """
import torch

from fl_vitlora.training.optimizers import Optimizer


class Signs(torch.optim.Optimizer):
    def __init__(self, groups, rate):
        super().__init__(groups, {"lr": rate})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())


SIGNS = Optimizer(
    make=lambda groups, config, rate: Signs(groups, rate),
    entrywise=True,
    told="Steps of one length in the direction of the gradient (1802.04434).",
)
"""


class Normalised(torch.optim.Optimizer):
    """A made-up optimiser that divides a gradient by the norm of the whole tensor."""

    def __init__(self, groups: Groups, rate: float) -> None:
        super().__init__(groups, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad / parameter.grad.norm())


def test_a_made_up_optimiser_takes_one_new_file_and_one_line(
    monkeypatch: pytest.MonkeyPatch, make_backbone: MakeBackbone, tmp_path: Path
):
    (tmp_path / "signs_of_gradients.py").write_text(NEW_FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(OPTIMIZERS, "signs", "signs_of_gradients:SIGNS")
    config = load(None, {"training.optimizer": "signs", "training.head_rate": 0.5})
    backbone = make_backbone()
    backbone.model.double()
    trainer = make_trainer(backbone, config)
    given = jobs(backbone, [4, 4])
    assert trainer.stacks
    for job, done in zip(given, trainer.train(given), strict=True):
        assert done.steps == 1
        moved = done.state["head.weight"] - job.start["head.weight"]
        rates = moved.abs().flatten() / RATE
        assert all(abs(rate) < 1e-9 or rate == pytest.approx(0.5) for rate in rates.tolist())
        assert rates.max() > 0


@pytest.fixture
def normalised(monkeypatch: pytest.MonkeyPatch) -> Config:
    def make(groups: Groups, config: TrainingConfig, rate: float) -> Normalised:
        return Normalised(groups, rate)

    entry = Optimizer(make=make, entrywise=False, told="Steps of one length (made up).")
    add(monkeypatch, "normalised", entry)
    return load(None, {"training.optimizer": "normalised", "training.batch_size": 4})


def test_clients_of_an_optimiser_that_is_not_entrywise_are_trained_one_by_one(
    normalised: Config, make_backbone: MakeBackbone
):
    backbone = make_backbone()
    backbone.model.double()
    trainer = make_trainer(backbone, normalised)
    assert not trainer.stacks
    expected, found = alone(backbone, trainer.config), trainer.train(jobs(backbone))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
        assert (one.loss, one.steps) == (other.loss, other.steps)


def test_a_worker_is_then_handed_one_client_at_a_time(
    normalised: Config, make_backbone: MakeBackbone
):
    assert trained_together(normalised) == 1
    assert "normalised does not compute entry by entry" in why_alone(
        make_backbone().model, normalised.training
    )
    entrywise = replace(normalised, training=replace(normalised.training, optimizer="sgd"))
    assert trained_together(entrywise) > 1


def test_in_one_batch_such_clients_would_get_something_else_and_are_refused(
    normalised: Config, monkeypatch: pytest.MonkeyPatch, make_backbone: MakeBackbone
):
    backbone, config = make_backbone(), normalised.training
    backbone.model.double()
    with pytest.raises(ValueError, match="normalised cannot share a batch"):
        train_together(Stack(backbone.model), jobs(backbone), config=config)
    add(monkeypatch, "normalised", replace(optimizer_of("normalised"), entrywise=True))
    expected = alone(backbone, config)
    found = train_together(Stack(backbone.model), jobs(backbone), config=config)
    way = largest(expected[0].state, jobs(backbone)[0].start)
    assert largest(found[0].state, expected[0].state) > 0.1 * way


def test_the_stacks_of_a_trainer_are_decided_by_model_and_optimiser(make_backbone: MakeBackbone):
    config = training("adamw")
    assert can_share_a_batch(make_backbone().model, config)
    assert not can_share_a_batch(make_backbone(method="full").model, config)
