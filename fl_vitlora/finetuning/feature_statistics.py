"""Statistics of features: the clients measure the means of features and of squared features.

While a client trains, this part watches the outputs z of one block. For each channel, this part
measures two means over all patch tokens of the round's images:

    mean = Σz / count,    square = Σz² / count

The server averages these two tensors with the numbers of images as weights, like all tensors.
Therefore the aggregated tensors are exactly the mean and the mean square over the images of all
clients. The server needs only sums over clients, so secure aggregation works. A client sends 2·D
numbers in each round. This part trains only the head, so it is used together with another part:
``lora+feature_statistics``.

The features are measured during training, so the model changes between the first and the last image
of a round. The predictor `bein` pulls the features of test images towards these statistics.

Source: BESTTA, arXiv 2311.18270, needs statistics of the training images. The paper does not say
how clients measure the statistics; the way described above is our own choice.

Letters in shapes: B batch, T tokens, P tokens at the beginning that are not patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning.groups import LORA
from fl_vitlora.finetuning.part import BatchTerm, Part
from fl_vitlora.finetuning.round_means import RoundMean
from fl_vitlora.finetuning.targets import blocks_of

PLACE = "source_statistics"  # the name of the module in its block


class Statistics(nn.Module):
    """The statistics of the outputs of one block; a block never calls this module.

    Args:
        width: The width D.

    Attributes:
        mean: The mean of each channel, (D,); zero before the first round.
        square: The mean square of each channel, (D,); zero before the first round.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width))
        self.square = nn.Parameter(torch.zeros(width))

    @property
    def deviation(self) -> Tensor:
        """Returns the standard deviation of each channel, (D,)."""
        return (self.square - self.mean.square()).clamp(min=0).sqrt()

    @property
    def measured(self) -> bool:
        """Returns True if the clients have measured the statistics at least once."""
        return bool(self.square.any())


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics(Part):
    """The part of a fine-tuning method that measures statistics of features.

    Attributes:
        depth: The share of the blocks that an image passes before its features are measured.
    """

    measured = (f".{PLACE}.mean", f".{PLACE}.square")

    depth: float = setting(
        0.5, "Share of the blocks that an image passes before its features are measured.", "(0, 1]"
    )

    def attach(self, model: nn.Module) -> None:
        """Adds the statistics to the chosen block."""
        blocks = blocks_of(model)
        whole: Any = model
        block = blocks[math.ceil(self.depth * len(blocks)) - 1]
        block.add_module(PLACE, Statistics(whole.embed_dim))

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the two tensors of statistics."""
        return [name for name, _ in model.named_parameters() if name.endswith(self.measured)]

    def group(self, name: str) -> str:
        """Returns the group `lora`, whose tensors are sent without a codec by default."""
        del name
        return LORA

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[BatchTerm]:
        """Measures the statistics of all patch tokens in the round; does not change the loss."""
        block, statistics = watched(model)
        mean, square = RoundMean(statistics.mean), RoundMean(statistics.square)

        def measure(module: nn.Module, inputs: Any, out: Tensor) -> None:
            del module, inputs
            tokens = patch_tokens(model, out.detach()).double().flatten(0, 1)
            mean.add(tokens.sum(dim=0), len(tokens))
            square.add(tokens.square().sum(dim=0), len(tokens))

        with hooked(block, measure):
            yield lambda labels: 0.0
        mean.store()
        square.store()

    def merge(self, model: nn.Module) -> None:
        """Removes the measured statistics from the model."""
        block, _ = watched(model)
        delattr(block, PLACE)


@contextmanager
def hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    """Makes PyTorch call a function after each forward pass of a module, inside a `with` block.

    Args:
        module: The module of a model whose forward passes are watched.
        hook: A function of the module, its inputs and its output. If `hook` returns a tensor, this
            tensor replaces the output of the module.
    """
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def watched(model: nn.Module) -> tuple[nn.Module, Statistics]:
    """Returns the block of a model that has statistics, and these statistics.

    Raises:
        LookupError: If no block has statistics.
    """
    for block in getattr(model, "blocks", []):
        if hasattr(block, PLACE):
            return block, getattr(block, PLACE)
    raise LookupError("no block of the model has statistics of features")


def patch_tokens(model: Any, tokens: Tensor) -> Tensor:
    """Returns the tokens of patches, (B, T - P, D), without the class token and the registers."""
    return tokens[:, model.num_prefix_tokens :]
