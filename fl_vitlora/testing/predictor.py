"""The rules that every predictor must keep, checked on a small real ViT.

    from fl_vitlora.testing.predictor import check_predictor

    def test_my_predictor():
        check_predictor(MyPredictor())

`fl_vitlora.training.prediction` has the contract. The model is the bundled architecture with random
weights and adapters, so that nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig, ModelConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.rng import generator
from fl_vitlora.training.prediction import Predictor, answering

CLASSES, SIZES = 3, (4, 1)  # of the model; the images of the two batches
CLOSE = 1e-4  # the largest distance of logits of about 1 in float32 that is called rounding


class PredictorError(AssertionError):
    """A rule of the contract that a predictor breaks; the message says how."""


def check_predictor(predictor: Predictor) -> None:
    """Checks a predictor against the rules of its contract.

    The rules are: it says whether it adapts; its logits have the shape (B, L) and are finite; the
    model and the images stay as they were, bit by bit; the same batch gets the same answer, also
    after another batch; and it changes no tensor unless it says that it adapts.

    Args:
        predictor: The predictor.

    Raises:
        PredictorError: If a rule is broken; the message names the first.

    Example:
        >>> from fl_vitlora.training.prediction import PLAIN
        >>> check_predictor(PLAIN)
    """
    if not isinstance(getattr(predictor, "adapts", None), bool):
        raise PredictorError("`adapts` must be True or False")
    model, batches = _model(), [_images(size) for size in SIZES]
    first, _, again = (_answer(predictor, model, batch) for batch in (*batches, batches[0]))
    if not torch.equal(first, again):
        raise PredictorError("the same batch gets another answer the second time")
    if not predictor.adapts:
        _expect_no_change(predictor, model, batches[0], first)


def _answer(predictor: Predictor, model: nn.Module, images: Tensor) -> Tensor:
    """Returns the logits of a batch, and checks them and what they leave behind."""
    before, given = _everything(model), images.clone()
    with answering(model, predictor, torch.float32):
        logits = predictor(model, images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), CLASSES):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PredictorError(
            f"expected logits of the shape (B, L) = {(len(images), CLASSES)}, got {shape}"
        )
    if not logits.isfinite().all():
        raise PredictorError("the logits are not all finite")
    if not torch.equal(images, given):
        raise PredictorError("the images are written to")
    after = _everything(model)
    if differing := [name for name in before if not _same(before[name], after.get(name))]:
        raise PredictorError(f"the model is not left as it was: {differing[0]}")
    return logits.detach().clone()


def _expect_no_change(
    predictor: Predictor, model: nn.Module, images: Tensor, quick: Tensor
) -> None:
    """Compares the answer of the faster layers with that of the layers as they are.

    The faster layers hold copies of the weights. A predictor that changes tensors, and puts them
    back, gets another answer with them.
    """
    with torch.no_grad():
        plain = predictor(model, images)
    far = float((plain - quick).abs().max())
    if not far <= CLOSE:
        raise PredictorError(
            f"a faster layer gives logits that differ by {far:.2g}; if the predictor changes "
            "tensors while it answers, it must say `adapts = True`"
        )


def _model() -> nn.Module:
    """Builds a small ViT with random adapters and statistics, in evaluation mode."""
    built = backbone.build(ModelConfig(weights="random"), CLASSES, 0)
    methods.prepare(built.model, FineTuningConfig(method="lora+feature_statistics"), 0)
    for name, parameter in methods.trainable(built.model).items():
        draw = generator(0, "check", name)
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    return built.model.eval()


def _images(count: int) -> Tensor:
    """Returns made-up images in [-1, 1], (count, 3, 16, 16)."""
    return torch.linspace(0, 40, count * 3 * 256).reshape(count, 3, 16, 16).sin()


def _everything(model: nn.Module) -> dict[str, Any]:
    """Returns all that a predictor must leave as it was, by a name for messages."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = {f"the mode of {name or 'it'}": m.training for name, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    trained = {f"requires_grad of {name}": p.requires_grad for name, p in parameters.items()}
    gradients = {f"the gradient of {name}": p.grad is None for name, p in parameters.items()}
    return {**tensors, **modes, **trained, **gradients}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and torch.equal(before, after)
    return bool(before == after)
