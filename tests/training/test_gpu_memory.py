"""What a worker needs is measured by doing it; of that, nothing may be left in the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fl_vitlora.config import Config, TrainingConfig
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.state import is_finite
from fl_vitlora.training import gpu_memory
from fl_vitlora.training.gpu_memory import Memory, measure, workers_that_fit
from tests.conftest import MakeBackbone

pytestmark = pytest.mark.slow

GiB = 2**30
CONFIG = Config(training=TrainingConfig(batch_size=4, epochs=50))


@pytest.mark.parametrize(
    ("free", "context", "step", "most", "fitting"),
    [
        (80, 0.5, 4.0, 4, 4),  # no more than are wanted
        (80, 0.5, 4.0, 99, 16),  # 72 to be had, 4.5 each
        (20, 0.5, 4.0, 4, 4),  # 18 to be had, 18 needed
        (19.9, 0.5, 4.0, 4, 3),
        (15, 0.5, 4.0, 4, 3),
        (14.9, 0.5, 4.0, 4, 2),
        (14.9, 0.0, 4.0, 4, 3),  # a context counts
        (1, 0.5, 4.0, 4, 1),  # at least one, which may fit after all
        (-1, 0.5, 4.0, 4, 1),
        (20, 0.5, 4.0, 1, 1),
    ],
)
def test_as_many_fit_as_the_memory_holds(
    free: float, context: float, step: float, most: int, fitting: int
) -> None:
    free, context, step = (int(size * GiB) for size in (free, context, step))
    assert workers_that_fit(free, context, step, most) == fitting


def everything(model: nn.Module) -> dict[str, Any]:
    gradients = {f"gradient of {n}": p.grad is None for n, p in model.named_parameters()}
    asks = {f"trained {n}": p.requires_grad for n, p in model.named_parameters()}
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {**tensors, **gradients, **asks, "training": model.training}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return before.keys() == after.keys() and all(
        torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        for name, value in before.items()
    )


def passes_of(model: nn.Module) -> list[int]:
    """Counts the images of every pass forward, of this model and of what is copied from it."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    return seen


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize("method", ["lora+patch_embed", "full"])
def test_the_model_is_left_as_it_was(
    method: str, *, clients: int, mode: bool, make_backbone: MakeBackbone
) -> None:
    backbone = make_backbone(method=method)
    backbone.model.train(mode)
    before = everything(backbone.model)
    assert measure(backbone, CONFIG, clients) == Memory(free=0, context=0, step=0)
    assert same(before, everything(backbone.model))


def test_without_being_put_back_it_would_not_be(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    before = everything(backbone.model)
    gpu_memory.take_steps(gpu_memory.make_trainer(backbone, CONFIG), 1)
    assert not same(before, everything(backbone.model))


@pytest.mark.parametrize(
    ("method", "clients", "batches"),
    [
        ("lora+patch_embed", 3, [12, 12]),  # clients × images, in one batch
        ("lora+patch_embed", 1, [4, 4]),
        ("full", 3, [4, 4] * 3),  # which shares no batch
    ],
)
def test_steps_are_those_of_a_worker_with_an_evaluation_after_them(
    method: str, clients: int, batches: list[int], make_backbone: MakeBackbone
) -> None:
    backbone = make_backbone(method=method)
    seen = passes_of(backbone.model)
    measure(backbone, CONFIG, clients)
    assert seen == [*batches, 64]


def test_they_are_real_steps(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    trainer = gpu_memory.make_trainer(backbone, CONFIG)
    start = everything(backbone.model)
    for trained in gpu_memory.take_steps(trainer, 2):
        assert trained.steps == 2
        assert is_finite(trained.state)
        moved = {name for name, t in trained.state.items() if not torch.equal(t, start[name])}
        assert moved == trained.state.keys()


def test_what_fails_is_left_as_it_was_too(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    before = everything(backbone.model)
    hook = backbone.model.register_forward_pre_hook(fails_when_evaluated)
    with pytest.raises(torch.OutOfMemoryError):
        measure(backbone, CONFIG, 1)
    hook.remove()
    assert same(before, everything(backbone.model))


def fails_when_evaluated(model: nn.Module, given: tuple[torch.Tensor]) -> None:
    if not model.training:
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_the_global_generator_is_left_alone(make_backbone: MakeBackbone) -> None:
    backbone: Backbone = make_backbone()
    before = torch.random.get_rng_state()
    measure(backbone, CONFIG, 2)
    assert torch.equal(torch.random.get_rng_state(), before)
