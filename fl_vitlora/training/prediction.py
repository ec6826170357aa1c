"""The contract of a predictor: what a model answers to a batch of images at evaluation.

A predictor maps a model and a batch to logits. Usually that is one forward pass (`Plain`). Other
predictors average over views of an image (test-time augmentation), or adapt the model to the batch
before they answer (test-time adaptation). The server and the clients evaluate with the same one.

This is a whole predictor, the mean over an image and its mirror image:

    >>> from typing import ClassVar
    >>> @dataclass(frozen=True)
    ... class Mirrored:
    ...     adapts: ClassVar[bool] = False
    ...     def __call__(self, model, images):
    ...         return (model(images) + model(images.flip(-1))) / 2
    >>> from fl_vitlora.testing.predictor import check_predictor
    >>> check_predictor(Mirrored())

The model is in evaluation mode, and the images are normalised. What else a predictor finds depends
on `adapts`:

* False: it is called in inference mode (`torch.inference_mode`), without gradients. In float32 the
  layers are replaced by faster ones that compute the same up to rounding. They hold copies of the
  weights, so a change of a tensor may go unnoticed; the predictor must change none.
* True: it is called with gradients enabled, outside inference mode, with the layers as they are. It
  may change tensors, but it must put them back, bit by bit, before it returns. So every batch is
  answered by the model that is evaluated, and the order of the batches does not matter.

To use a predictor, name its class in the setting `evaluation.predictor`; `plain` is the usual one.

B images of a batch, C channels, H and W their height and width in pixels, L classes.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fl_vitlora.config.predictor_names import PREDICTORS
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.finetuning.inference import quick_layers


class Predictor(Protocol):
    """Answers a batch of images with a model; the module has an example."""

    @property
    def adapts(self) -> bool:
        """Returns True if the predictor needs gradients, or changes tensors while it answers."""
        ...

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits of a batch.

        The same batch gets the same answer each time. The model and the images are left as they
        were.

        Args:
            model: The model in evaluation mode; it maps (B, C, H, W) to (B, L).
            images: The normalised images, (B, C, H, W), on the device of the model. The last batch
                of a shard may be smaller than the others.

        Returns:
            The logits, (B, L).
        """
        ...


@dataclass(frozen=True)
class Plain:
    """The predictor of one forward pass."""

    adapts: ClassVar[bool] = False

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns what the model computes."""
        logits: Tensor = model(images)
        return logits


PLAIN = Plain()


def predictor_of(name: str) -> Predictor:
    """Imports and makes a predictor.

    Args:
        name: A name of the table, or ``package.module:Class``; the class takes no arguments.

    Raises:
        UserError: If the predictor cannot be imported or made, or does not say whether it adapts.

    Example:
        >>> predictor_of("plain")
        Plain()
    """
    module_name, _, class_name = PREDICTORS.get(name, name).partition(":")
    try:
        module = vars(importlib.import_module(module_name))
    except (Exception, SystemExit) as error:
        raise UserError(f"predictor {name} cannot be imported: {_cause(error)}") from error
    classes: dict[str, Any] = {n: kind for n, kind in module.items() if inspect.isclass(kind)}
    if class_name not in classes:
        own = [n for n, kind in classes.items() if hasattr(kind, "adapts")]
        raise unknown(f"predictor in {module_name}", class_name, own)
    try:
        made: Predictor = classes[class_name]()
    except Exception as error:
        raise UserError(f"predictor {name} cannot be made: {_cause(error)}") from error
    if not callable(made) or not isinstance(getattr(made, "adapts", None), bool):
        raise UserError(
            f"predictor {name}: expected a class with __call__ and adapts, which is True or False"
        )
    return made


def _cause(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


@contextmanager
def answering(model: nn.Module, predictor: Predictor, precision: torch.dtype) -> Iterator[None]:
    """Prepares a model for a predictor inside a `with` block, as the module describes.

    Args:
        model: The model in evaluation mode.
        predictor: The predictor that is called in the block.
        precision: The number format of activations. Only in float32 the layers become faster: they
            add B·A to W, and in half precision the sum would lose it.
    """
    if predictor.adapts:
        with torch.enable_grad():
            yield
    elif precision == torch.float32:
        with torch.inference_mode(), quick_layers(model):
            yield
    else:
        with torch.inference_mode():
            yield
