"""Makes the server's model before the first round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import WEIGHT, put_reader, reader_of
from fl_vitlora.state import State


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server's model before the first round.

    The public model is the pre-trained model, which anyone can download.

    Attributes:
        backbone: The model with the parts of the fine-tuning method, on the server's device.
        origin: The patch embedding of the public model.
        start: The initial patch embedding of the server's model, which may be adapted to a key.
        initial: A dictionary from names to all trained tensors before the first round.
    """

    backbone: Backbone
    origin: PatchReader
    start: PatchReader
    initial: State

    @property
    def plain(self) -> State:
        """Returns the parameters of the public model, with the public patch embedding."""
        return {**methods.plain_parameters(self.backbone.model), WEIGHT: self.origin.weight}

    @property
    def whole(self) -> State:
        """Returns the tensors that full fine-tuning would exchange.

        Full fine-tuning exchanges all tensors of the model without the tensors that a fine-tuning
        method has added.
        """
        built = {name: tensor.detach().cpu() for name, tensor in self.backbone.built.items()}
        return {**built, WEIGHT: self.origin.weight}


def make_server(backbone: Backbone, start: Callable[[PatchReader], PatchReader]) -> Server:
    """Puts the initial patch embedding into the server's model.

    Args:
        backbone: The public model with the tensors of the fine-tuning method. This function changes
            the patch embedding of `backbone` in place.
        start: A function that maps the public patch embedding to the initial patch embedding.

    Returns:
        The server's model, with the initial values of all tensors.
    """
    origin = reader_of(backbone)
    reader = start(origin)
    put_reader(backbone.model, reader)
    return Server(
        backbone=backbone,
        origin=origin,
        start=reader,
        initial=methods.export_state(backbone.model),
    )
