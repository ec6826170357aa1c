"""The inputs of a training step: images, or features if the backbone never changes.

The logits of a step are computed from inputs. For most methods the inputs are the images of the
step, and the whole model computes. If a method has features (`finetuning.features`), the inputs are
the features of the images, and only the rest of the model computes. If the client keeps the
features, a step takes the features from the shard; otherwise each step computes the features anew.
Kept features and new features have the same bits on a CPU, because there the features of an image
do not depend on the other images of a batch. A model whose method has features stays in evaluation
mode, so that dropout does not change the features.

Letters in shapes: B images in a step, n images of a shard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.features import FrozenBackbone, frozen_backbone
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import put_reader
from fl_vitlora.training.precision import autocast

Inputs = Callable[[Tensor], Tensor]  # maps the positions of images, (B,), to their inputs, (B, ...)
FEATURE_BATCH = 64  # images; on a CPU, this number of images fits into the cache of a core


def frozen_of(model: nn.Module) -> FrozenBackbone | None:
    """Returns the two halves of a prepared model, or None if its method has no features."""
    preparation = methods.prepared(model)
    return None if preparation is None else frozen_backbone(model, preparation.method)


def set_mode(model: nn.Module, frozen: FrozenBackbone | None) -> None:
    """Puts a model into training mode, or into evaluation mode if its method has features."""
    training = frozen is None
    if model.training is not training:  # setting the mode of all modules takes time
        model.train(training)


def logits_of(model: nn.Module, frozen: FrozenBackbone | None) -> Inputs:
    """Returns the function that maps the inputs of a step to logits.

    Args:
        model: The model that is trained; it may be the model of stacked clients.
        frozen: The frozen backbone and the trained rest of the model for one client; None if the
            inputs are images.
    """
    if frozen is not None:
        return lambda features: frozen.part.from_features(model, features)
    return lambda images: model(normalize(images))


def inputs_of(
    shard: Shard,
    frozen: FrozenBackbone | None,
    device: torch.device,
    precision: torch.dtype,
    reader: PatchReader | None = None,
) -> Inputs:
    """Returns the function that maps positions in a shard to the inputs of a step.

    Args:
        shard: The images of a client, and their features if the client keeps them.
        frozen: The frozen backbone and the trained rest of the model; None if the inputs are
            images.
        device: The device of the model.
        precision: The number format of activations.
        reader: The patch reader that must be in the model when features are computed; None if the
            patch reader is already in the model.
    """
    if frozen is not None and shard.features is not None:
        kept = shard.features.to(device)
        return lambda chosen: kept.index_select(0, chosen)
    images = shard.images.to(device)
    if frozen is None:
        return lambda chosen: images[chosen]

    def compute(chosen: Tensor) -> Tensor:
        if reader is not None:
            put_reader(frozen.model, reader)
        return features_of(frozen, images[chosen], precision)

    return compute


def features_of(frozen: FrozenBackbone, images: Tensor, precision: torch.dtype) -> Tensor:
    """Computes the features of images.

    Args:
        frozen: The two halves of the model: the frozen backbone, and the rest that is trained.
        images: The images as they are on disk, (B, C, H, W), on the device of the model.
        precision: The number format of activations.

    Returns:
        The features, (B, ...).
    """
    with torch.no_grad(), autocast(images.device, precision):
        return frozen.features(normalize(images))


def kept_or_computed(
    frozen: FrozenBackbone, batch: Shard, device: torch.device, precision: torch.dtype
) -> Tensor:
    """Returns the features of a batch on a device; computes the features if the batch lacks them.

    Args:
        frozen: The two halves of the model: the frozen backbone, and the rest that is trained.
        batch: The images, and their features if they were computed before.
        device: The device of the model.
        precision: The number format of activations.
    """
    if batch.features is not None:
        return batch.features.to(device)
    return features_of(frozen, batch.images.to(device), precision)


def features_of_shard(
    frozen: FrozenBackbone, shard: Shard, device: torch.device, precision: torch.dtype
) -> Tensor:
    """Computes the features of all images of a shard, in batches.

    Args:
        frozen: The two halves of the model: the frozen backbone, and the rest that is trained.
        shard: The images.
        device: The device of the model.
        precision: The number format of activations.

    Returns:
        The features, (n, ...), on the CPU.
    """
    batches = torch.split(shard.images, FEATURE_BATCH)
    return torch.cat([features_of(frozen, b.to(device), precision).cpu() for b in batches])


def with_features(model: nn.Module, shard: Shard, most: int, precision: torch.dtype) -> Shard:
    """Returns a shard with its features, so that no later evaluation computes the backbone again.

    Args:
        model: A prepared model that contains the patch reader of the shard's images.
        shard: The images.
        most: The largest number of bytes of the features.
        precision: The number format of activations.

    Returns:
        The shard with its features; the unchanged shard if the method has no features, or if the
        features would be too large.
    """
    frozen = frozen_of(model)
    if frozen is None or not len(shard):
        return shard
    device = next(model.parameters()).device
    one = features_of_shard(frozen, shard.take(torch.tensor([0])), device, precision)
    if one.nbytes * len(shard) > most:
        return shard
    return replace(shard, features=features_of_shard(frozen, shard, device, precision))
