"""Features: the outputs of a frozen backbone, which a client computes only once for each image.

Most fine-tuning methods train tensors inside the backbone, so each step computes the whole model.
Some methods train only tensors after the backbone or beside the backbone. With these methods, the
outputs of the backbone for an image are the same in all steps and rounds. These outputs are called
the features of the image. A client can compute the features once and keep them. Two functions of a
part describe how the features are computed and used:

    logits = part.from_features(model, part.features(model, images))

A method has features if `frozen_backbone` is True for all parts of the method. At most one part may
replace the two functions `features` and `from_features`; the other parts then train only the
classifier. The features are always computed in evaluation mode and without gradients.

Letters in shapes: B images, C channels, H and W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.classifier import heads_of
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part


@dataclass(frozen=True, kw_only=True)
class FrozenBackbone:
    """A model in two pieces: a backbone that never changes, and the trained rest of the model.

    Attributes:
        model: A prepared model.
        part: The part of the method that computes the features, and the logits from the features.
    """

    model: nn.Module
    part: Part

    def features(self, images: Tensor) -> Tensor:
        """Returns the features of normalised images, (B, ...), without gradients.

        This method leaves the model in evaluation mode.

        Args:
            images: The normalised images, (B, C, H, W), on the device of the model.
        """
        if self.model.training:  # setting the mode of all modules takes time
            self.model.eval()
        with torch.no_grad():
            return self.part.features(self.model, images)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits, (B, classes), for the features of images."""
        return self.part.from_features(self.model, features)


def frozen_backbone(model: nn.Module, method: Method) -> FrozenBackbone | None:
    """Returns a prepared model in two pieces, or None if each step must compute the whole model.

    Args:
        model: A prepared model. The classifier of the model must be one linear layer, `head`;
            otherwise the result is None, because a model may average the outputs of several
            classifiers.
        method: The method that is attached to the model.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear) or heads_of(model) != [head]:
        return None
    if not method.frozen_backbone:
        return None
    _, part = next(iter(_readers(method)), method.parts[0])
    return FrozenBackbone(model=model, part=part)


def check_features(method: Method) -> None:
    """Refuses a method whose parts cannot all use the features of one frozen backbone.

    Raises:
        UserError: If a part defines its own features, and another part changes the backbone or
            defines other features.
    """
    for name, part in _readers(method):
        for other, beside in method.parts:
            if other != name and not beside.frozen_backbone:
                raise UserError(
                    f"method {method.name}: {name} needs a frozen backbone, but {other} changes "
                    f"the outputs of the backbone; choose --method {name}"
                )
            if beside is not part and _reads(beside):
                raise UserError(
                    f"method {method.name}: {name} and {other} both replace the classifier's "
                    f"input; choose --method {name} or {other}"
                )


def _readers(method: Method) -> list[tuple[str, Part]]:
    """Returns the parts of a method that define their own features, each with its name."""
    return [(name, part) for name, part in method.parts if _reads(part)]


def _reads(part: Part) -> bool:
    return type(part).features is not Part.features
