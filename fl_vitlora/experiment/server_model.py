"""The server's model, and what is known of it before the first round."""

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
    """The server's model, and what is known of it before the first round.

    Attributes:
        backbone: The model with what the method adds, on the server's device.
        origin: The patch embedding of the public model.
        start: The patch embedding that the server's model has at first.
        initial: All trained tensors, as the server has them at first.
    """

    backbone: Backbone
    origin: PatchReader
    start: PatchReader
    initial: State

    @property
    def plain(self) -> State:
        """Returns the parameters of the plain model, the public patch embedding among them."""
        return {**methods.plain_parameters(self.backbone.model), WEIGHT: self.origin.weight}

    @property
    def whole(self) -> State:
        """Returns what full fine-tuning would exchange: the model as it was built.

        What a method adds to the model is not in it, whatever its tensors are called.
        """
        built = {name: tensor.detach().cpu() for name, tensor in self.backbone.built.items()}
        return {**built, WEIGHT: self.origin.weight}


def make_server(backbone: Backbone, start: Callable[[PatchReader], PatchReader]) -> Server:
    """Gives the server's model its first patch embedding.

    Args:
        backbone: A prepared, public model; its patch embedding is changed in place.
        start: Makes the server's first patch embedding of the public one.

    Returns:
        The server's side.
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
