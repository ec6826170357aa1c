"""The rules for a predictor, which computes the logits of a batch of images at evaluation.

A predictor maps a model and a batch to logits. The usual predictor is one forward pass (`Plain`).
Other predictors average over several views of an image (test-time augmentation), or adapt the model
to the batch before they compute logits (test-time adaptation). The server and the clients evaluate
with the same predictor.

This complete predictor averages over an image and its mirror image:

    >>> from typing import ClassVar
    >>> @dataclass(frozen=True)
    ... class Mirrored:
    ...     adapts: ClassVar[bool] = False
    ...     def __call__(self, model, images):
    ...         return (model(images) + model(images.flip(-1))) / 2
    >>> from fl_vitlora.testing.predictor import check_predictor
    >>> check_predictor(Mirrored())

A predictor gets a model in evaluation mode and normalised images. How a predictor is called also
depends on its attribute `adapts`:

* False: the predictor is called in inference mode (`torch.inference_mode`), without gradients. In
  float32 the layers are replaced by faster layers, whose outputs differ only by rounding. The
  faster layers have copies of the weights. Therefore the predictor must not change a tensor: the
  copy would not change, and the change would have no effect.
* True: the predictor is called with gradients enabled, outside of inference mode, and no layer is
  replaced. A predictor whose attribute `adapts` is True may change tensors, but must restore them
  exactly before it returns. Then every batch is evaluated with the same model, and the order of the
  batches does not matter.

A predictor that does not work with every fine-tuning method has a method `check(method)`. The
method `check` is called before a run writes anything, and raises a UserError if the predictor
cannot work with the `fl_vitlora.finetuning.method.Method` of the run.

To use a predictor, name its class in the setting `evaluation.predictor`; the default is `plain`.

Letters in shapes: B images in a batch, C channels, height H and width W in pixels, L classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fl_vitlora.config.named_code import cause_of, code_named
from fl_vitlora.config.predictor_names import PREDICTORS
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.inference import quick_layers
from fl_vitlora.finetuning.method import Method


class Predictor(Protocol):
    """Computes the logits of a batch with a model; the docstring of the module has an example."""

    @property
    def adapts(self) -> bool:
        """Returns True if the predictor needs gradients, or changes tensors while it computes."""
        ...

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits of a batch.

        The logits of the same batch must be the same at every call. After the call, the model and
        the images must be the same as before.

        Args:
            model: The model in evaluation mode; it maps (B, C, H, W) to (B, L).
            images: The normalised images, (B, C, H, W), on the device of the model. The last batch
                of a shard may be smaller than the other batches.

        Returns:
            The logits, (B, L).
        """
        ...


@dataclass(frozen=True)
class Plain:
    """The usual predictor: one forward pass of the model."""

    adapts: ClassVar[bool] = False

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the outputs of the model."""
        logits: Tensor = model(images)
        return logits


PLAIN = Plain()


def predictor_of(name: str) -> Predictor:
    """Imports the class of a predictor, and returns an instance of the class.

    Args:
        name: A name in the table `PREDICTORS`, or ``package.module:Class``. The class must be
            callable without arguments.

    Raises:
        UserError: If the class cannot be imported, raises an error, or is not a predictor.

    Example:
        >>> predictor_of("plain")
        Plain()
    """
    place = PREDICTORS.get(name, name)
    kind = code_named(place, "predictor", inspect.isclass, lambda kind: hasattr(kind, "adapts"))
    try:
        made: Predictor = kind()
    except Exception as error:
        raise UserError(
            f"predictor {name}: no instance of its class can be made without arguments: "
            f"{cause_of(error)}"
        ) from error
    if not callable(made) or not isinstance(getattr(made, "adapts", None), bool):
        raise UserError(
            f"predictor {name}: expected a class with the method __call__ and the attribute "
            "adapts, which must be True or False"
        )
    return made


def predictor_for(name: str, method: Method) -> Predictor:
    """Returns a predictor like `predictor_of`, and checks that it works with a fine-tuning method.

    Args:
        name: The name of the predictor.
        method: The fine-tuning method of the run.

    Raises:
        UserError: If there is no such predictor, or if the predictor refuses the method.
    """
    predictor = predictor_of(name)
    check = getattr(predictor, "check", None)
    if callable(check):
        check(method)
    return predictor


@contextmanager
def answering(model: nn.Module, predictor: Predictor, precision: torch.dtype) -> Iterator[None]:
    """Prepares PyTorch and a model for a predictor, inside a `with` block.

    The docstring of the module says what a predictor can expect.

    Args:
        model: The model in evaluation mode.
        predictor: The predictor that is called in the block.
        precision: The number format of activations. The layers become faster only in float32. A
            faster layer computes the weight W + s·B·A only once, and in half precision, rounding
            this sum would lose the small product B·A.
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
