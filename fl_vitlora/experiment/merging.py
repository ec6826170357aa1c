"""Makes a plain model of timm from the trained model of a run, without layers of the method."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fl_vitlora.experiment.trained_model import TrainedModel
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.classifier import plain_heads
from fl_vitlora.models.reading import KernelPerPatch


def merged(trained: TrainedModel, reads: str, client: int | None = None) -> nn.Module:
    """Returns the trained model as a plain timm model in float64.

    Args:
        trained: The model of the run.
        reads: "plain" for a model that reads plain images, "ciphertext" for a model that reads
            images that are encrypted like the images of the run.
        client: The number of the client whose key is used, if every client has its own key.

    Raises:
        CannotMergeError: If a part of the method cannot be merged into a plain timm model, or if
            every patch has its own kernel.
        UserError: If there is no such model, or if the key is needed but missing.
    """
    made = trained.for_plain if reads == "plain" else trained.for_ciphertext
    model: Any = made(client, torch.float64)
    if isinstance(model.patch_embed.proj, KernelPerPatch):
        raise methods.CannotMergeError(
            "every block has its own key (encryption.scope block), so every patch has its own "
            "kernel, and timm has no such model"
        )
    methods.merge(model)
    plain_heads(model)
    plain: nn.Module = model
    return plain
