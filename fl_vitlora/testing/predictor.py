"""The rules that every predictor must obey, checked on a small real ViT.

    from fl_vitlora.testing.predictor import check_predictor

    def test_my_predictor():
        check_predictor(MyPredictor())

A predictor computes the logits of test images with a model. `fl_vitlora.training.prediction`
defines the contract. The model is the bundled architecture with random weights and adapters.
Therefore nothing is downloaded.
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

CLASSES, SIZES = 3, (4, 1)  # the classes of the model; the numbers of images of two batches
CLOSE = 1e-4  # the largest difference of logits of about 1, in float32, that counts as rounding


class PredictorError(AssertionError):
    """An error: a predictor breaks a rule.

    The message explains how the predictor breaks the rule.
    """


def check_predictor(predictor: Predictor) -> None:
    """Checks a predictor against the rules of its contract.

    These are the rules, for a batch of B images and a model with L classes:

    * The attribute `adapts` says whether the predictor changes the model or needs gradients.
    * The logits have the shape (B, L) and are finite.
    * After a call the model and the images have the same bits as before the call.
    * A batch gets the same logits in every call, even after a call with another batch.
    * The predictor never changes a tensor if `adapts` is False.

    Args:
        predictor: The predictor that is checked.

    Raises:
        PredictorError: If a rule is broken. The message explains the first broken rule.

    Example:
        >>> from fl_vitlora.training.prediction import PLAIN
        >>> check_predictor(PLAIN)
    """
    if not isinstance(getattr(predictor, "adapts", None), bool):
        raise PredictorError(
            "`adapts` must be True or False: whether the predictor changes tensors of the model "
            "while it answers"
        )
    model, batches = _model(), [_images(size) for size in SIZES]
    first, _, again = (_answer(predictor, model, batch) for batch in (*batches, batches[0]))
    if not torch.equal(first, again):
        raise PredictorError(
            "the same batch gets another answer the second time; a predictor must not remember "
            "earlier batches or use random numbers"
        )
    if not predictor.adapts:
        _expect_no_change(predictor, model, batches[0], first)


def _answer(predictor: Predictor, model: nn.Module, images: Tensor) -> Tensor:
    """Returns the logits of a batch; checks the logits, and that model and images are unchanged."""
    before, given = _everything(model), images.clone()
    with answering(model, predictor, torch.float32):
        logits = predictor(model, images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), CLASSES):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise PredictorError(
            f"expected logits of the shape (images, classes) = {(len(images), CLASSES)}, "
            f"got {shape}"
        )
    if not logits.isfinite().all():
        raise PredictorError("the logits contain NaN or infinity, expected finite numbers")
    if not torch.equal(images, given):
        raise PredictorError("the predictor changes the images, expected no change")
    after = _everything(model)
    if differing := [name for name in before if not _same(before[name], after.get(name))]:
        raise PredictorError(
            f"after the answer the model differs in {differing[0]}; the predictor must restore it"
        )
    return logits.detach().clone()


def _expect_no_change(
    predictor: Predictor, model: nn.Module, images: Tensor, quick: Tensor
) -> None:
    """Checks that a predictor with `adapts` = False changes no tensor during a call.

    For a predictor with `adapts` = False, a run uses faster layers, which hold copies of the
    weights. If a predictor changes a weight during a call, the copies do not change. Then the
    predictor's logits with the faster layers differ from those with the model's own layers.

    Args:
        predictor: The predictor that is checked.
        model: The model with its own layers.
        images: A batch of images, (B, C, H, W).
        quick: The logits of this batch with the faster layers.

    Raises:
        PredictorError: If the logits differ by more than rounding.
    """
    with torch.no_grad():
        plain = predictor(model, images)
    far = float((plain - quick).abs().max())
    if not far <= CLOSE:
        raise PredictorError(
            f"with faster layers, which copy the weights, the logits differ by {far:.2g}; if the "
            "predictor changes tensors while it answers, it must say `adapts = True`"
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
    """Returns made-up images (count, 3, 16, 16) with pixels in [-1, 1]."""
    return torch.linspace(0, 40, count * 3 * 256).reshape(count, 3, 16, 16).sin()


def _everything(model: nn.Module) -> dict[str, Any]:
    """Returns everything that a predictor must not change, by a name for error messages."""
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = {f"the mode of {name or 'itself'}": m.training for name, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    trained = {f"requires_grad of {name}": p.requires_grad for name, p in parameters.items()}
    gradients = {f"the gradient of {name}": p.grad is None for name, p in parameters.items()}
    return {**tensors, **modes, **trained, **gradients}


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and torch.equal(before, after)
    return bool(before == after)
