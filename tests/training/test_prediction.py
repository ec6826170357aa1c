"""What a predictor answers is what is measured, and the check catches every broken promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.config import DataConfig
from fl_vitlora.data import sources
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.inference import quick_layers
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.state import State
from fl_vitlora.testing.predictor import PredictorError, check_predictor
from fl_vitlora.training.local import EVALUATION_BATCH, evaluate
from fl_vitlora.training.prediction import PLAIN, Plain, Predictor
from tests.conftest import MakeBackbone

SIZE = EVALUATION_BATCH["cpu"]


@pytest.fixture(scope="module")
def shard() -> Shard:
    """Real digits, one batch and a half."""
    images, _ = sources.load(DataConfig(limit=SIZE * 3 // 2))
    count = len(images.labels)
    return Shard(images.read(np.arange(count), 16, 16), torch.from_numpy(images.labels))


def moved(backbone: Backbone) -> State:
    random = torch.Generator().manual_seed(0)
    state = methods.export_state(backbone.model)
    return {n: t + 0.05 * torch.randn(t.shape, generator=random) for n, t in state.items()}


@dataclass(frozen=True)
class Mirrored:
    """The mean over an image and its mirror image."""

    adapts: ClassVar[bool] = False

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        mean: Tensor = (model(images) + model(images.flip(-1))) / 2
        return mean


@dataclass(frozen=True)
class Confident:
    """One step down the entropy of the answers to a batch, in the manner of arXiv 2006.10726."""

    adapts: ClassVar[bool] = True
    rate: float = 0.1
    ending: str = ".lora_B"

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        chosen = [p for n, p in methods.trainable(model).items() if n.endswith(self.ending)]
        before = [p.detach().clone() for p in chosen]
        logits = model(images).log_softmax(dim=-1)
        entropy = -(logits.exp() * logits).sum(dim=-1).mean()
        slopes = torch.autograd.grad(entropy, chosen)
        with torch.no_grad():
            for parameter, slope in zip(chosen, slopes, strict=True):
                parameter.sub_(self.rate * slope)
            answer: Tensor = model(images)
            for parameter, was in zip(chosen, before, strict=True):
                parameter.copy_(was)
        return answer


@dataclass(frozen=True)
class Certain(Plain):
    """Answers with the first class, whatever the image is."""

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        answer: Tensor = F.one_hot(torch.zeros(len(images), dtype=torch.long), 10).float()
        return answer


def entropy_of(logits: Tensor) -> float:
    return float(torch.distributions.Categorical(logits=logits).entropy().mean())


def measured(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    correct = int((logits.argmax(dim=-1) == labels).sum())
    return correct / len(labels), float(F.cross_entropy(logits, labels))


@torch.inference_mode()
def by_hand(backbone: Backbone, state: State, shard: Shard) -> tuple[float, float]:
    """Evaluates without a predictor: forward passes through the faster layers, batch by batch."""
    methods.load_state(backbone.model, state)
    backbone.model.eval()
    correct, loss = 0, 0.0
    with quick_layers(backbone.model):
        for images, labels in zip(shard.images.split(SIZE), shard.labels.split(SIZE), strict=True):
            logits = backbone.model(normalize(images))
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(dim=-1) == labels).sum())
    return correct / len(shard), loss / len(shard)


def test_the_plain_predictor_gives_the_bits_of_forward_passes(
    make_backbone: MakeBackbone, shard: Shard
):
    backbone = make_backbone()
    state = moved(backbone)
    expected = by_hand(backbone, state, shard)
    assert evaluate(backbone, state, shard) == expected
    assert evaluate(backbone, state, shard, torch.float32, PLAIN) == expected


def test_what_a_predictor_answers_is_what_is_measured(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone()
    state = moved(backbone)
    found = evaluate(backbone, state, shard, predictor=Mirrored())
    with torch.no_grad():
        logits = Mirrored()(backbone.model, normalize(shard.images))
    assert found == pytest.approx(measured(logits, shard.labels), rel=1e-5)
    assert found != pytest.approx(evaluate(backbone, state, shard), rel=1e-3)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_predictor_may_adapt_the_model_and_leaves_no_trace(
    precision: torch.dtype, make_backbone: MakeBackbone, shard: Shard
):
    backbone = make_backbone()
    state = moved(backbone)
    plain = evaluate(backbone, state, shard, precision)
    adapted = evaluate(backbone, state, shard, precision, Confident())
    assert adapted != plain
    assert all(torch.equal(t, state[n]) for n, t in methods.export_state(backbone.model).items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert evaluate(backbone, state, shard, precision) == plain


def test_adapted_to_a_batch_the_model_is_more_certain(make_backbone: MakeBackbone, shard: Shard):
    backbone = make_backbone()
    methods.load_state(backbone.model, moved(backbone))
    backbone.model.eval()
    images = normalize(shard.images)
    before, after = (Confident(rate=rate)(backbone.model, images) for rate in (0.0, 0.1))
    assert entropy_of(after) < entropy_of(before)


def test_the_order_of_the_batches_does_not_matter(make_backbone: MakeBackbone, shard: Shard):
    """Each batch is answered by the model that is evaluated, not by what a batch left behind."""
    backbone = make_backbone()
    state = moved(backbone)
    whole = replace(shard, images=shard.images[:SIZE], labels=shard.labels[:SIZE])
    twice = replace(shard, images=whole.images.repeat(2, 1, 1, 1), labels=whole.labels.repeat(2))
    once = evaluate(backbone, state, whole, predictor=Confident())
    assert evaluate(backbone, state, twice, predictor=Confident()) == once


@pytest.mark.parametrize("predictor", [PLAIN, Mirrored(), Confident()])
def test_good_predictors_pass(predictor: Predictor):
    check_predictor(predictor)


class Made:
    """A predictor of a function, made up to break one rule."""

    def __init__(
        self, function: Callable[[nn.Module, Tensor], Any], *, adapts: Any = False
    ) -> None:
        self.function, self.adapts = function, adapts

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        return self.function(model, images)


def counting() -> Callable[[nn.Module, Tensor], Tensor]:
    calls: list[int] = []

    def function(model: nn.Module, images: Tensor) -> Tensor:
        calls.append(1)
        return model(images) * len(calls)  # type: ignore[no-any-return]

    return function


def features(model: Any, images: Tensor) -> Any:
    return model.forward_features(images)


def writing(model: nn.Module, images: Tensor) -> Any:
    return model(images.mul_(0.5))


@torch.no_grad()
def drifting(model: nn.Module, images: Tensor) -> Any:
    model.get_parameter("head.bias").add_(1.0)
    return model(images)


def training(model: nn.Module, images: Tensor) -> Any:
    return model.train()(images)


def leaving_gradients(model: nn.Module, images: Tensor) -> Any:
    logits = model(images)
    logits.sum().backward()
    return logits


def hidden(model: nn.Module, images: Tensor) -> Any:
    """Changes a weight of which the faster layers hold a copy, and puts it back."""
    weight = model.get_parameter("blocks.0.attn.qkv.adapters.q.lora_B")
    was = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
        logits = model(images)
        weight.copy_(was)
    return logits


BROKEN: dict[str, tuple[Any, str]] = {
    "no word": (Made(lambda m, x: m(x), adapts=None), "`adapts` must be True or False"),
    "features": (Made(features), r"\(images, classes\) = \(4, 3\), got"),
    "one answer": (Made(lambda m, x: m(x)[:1]), r"\(images, classes\) = \(4, 3\), got \(1, 3\)"),
    "no tensor": (Made(lambda m, x: m(x).tolist()), r"got list"),
    "no numbers": (Made(lambda m, x: m(x).log()), "NaN or infinity"),
    "memory": (Made(counting()), "another answer the second time"),
    "chance": (Made(lambda m, x: m(x + torch.randn_like(x))), "another answer the second time"),
    "images": (Made(writing), "the predictor changes the images"),
    "tensors": (Made(drifting, adapts=True), "the model differs in head.bias"),
    "mode": (Made(training), "the model differs in the mode of itself"),
    "gradients": (Made(leaving_gradients, adapts=True), "the model differs in the gradient of"),
    "hidden": (Made(hidden), "it must say `adapts = True`"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_says_which_rule_is_broken(name: str):
    predictor, told = BROKEN[name]
    with pytest.raises(PredictorError, match=told):
        check_predictor(predictor)


def test_who_adapts_and_says_so_may_change_a_weight():
    check_predictor(Made(hidden, adapts=True))


@pytest.mark.parametrize("method", ["head", "lora"])
def test_a_predictor_made_from_the_plain_one_is_called(
    make_backbone: MakeBackbone, shard: Shard, method: str
):
    backbone = make_backbone(method=method)
    accuracy, _ = evaluate(backbone, moved(backbone), shard, predictor=Certain())
    assert accuracy == float((shard.labels == 0).double().mean())
