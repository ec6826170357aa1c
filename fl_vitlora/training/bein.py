"""BeIN-style test-time adaptation: features of test images get the statistics of training images.

The method part `feature_statistics` measures the features after one block of the model on the
training images, which are called the source. At evaluation, the features z of the patches after
this block are normalised with two vectors for each image, β and γ, which start at zero:

    out = (z - (μ + β)) / exp(γ) + μ
    loss = ‖mean(out) - μ‖² + ‖std(out) - σ‖² + c · mean(1 - cos(out, z))

μ and σ are the mean and the standard deviation of the source, for each channel. Only β and γ are
adapted; the class token and all weights do not change. Without the last term, the minimum has a
closed form, β = mean(z) - μ and γ = log(std(z) / σ). Statistics of a single image with few patches
are noisy, so `BatchBeIN` uses the statistics of a whole batch of test images.

The contract of predictors demands equal logits for equal batches. Therefore β and γ start at zero
for each batch, and are not carried from image to image. The statistics do not depend on the order
of patches. Therefore the key does not change the logits of a model that is adapted to the key.

Source: Lee et al., "BESTTA", arXiv 2311.18270: one normalisation layer with two trained vectors,
losses of style and content, single images. All formulas are our interpretation of BESTTA.

Letters in shapes: B images, N patches, T tokens, D width, G groups of M patches that share β and γ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.feature_statistics import (
    FeatureStatistics,
    Statistics,
    hooked,
    patch_tokens,
    watched,
)
from fl_vitlora.finetuning.method import Method

TINY = 1e-6  # `closed_form` replaces smaller standard deviations by this number


def restyled(z: Tensor, mean: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """Returns (z - (μ + β)) / exp(γ) + μ.

    Args:
        z: The features of patches, (B, N, D).
        mean: The mean μ of the source, (D,).
        beta: The shift β, (B, 1, D), or (1, 1, D) for all images together.
        gamma: The logarithm γ of the scale, in the shape of β.

    Example:
        >>> z, one = torch.tensor([[[3.0], [7.0]]]), torch.ones(1, 1, 1)
        >>> restyled(z, torch.ones(1), 4 * one, math.log(2) * one).flatten()
        tensor([0., 2.])
    """
    return (z - (mean + beta)) * (-gamma).exp() + mean


def style_loss(out: Tensor, z: Tensor, mean: Tensor, deviation: Tensor, content: float) -> Tensor:
    """Returns the loss of the adaptation, summed over groups of patches that share β and γ.

    Args:
        out: The adapted features, (G, M, D): G groups of M patches that share β and γ.
        z: The features before the adaptation, (G, M, D).
        mean: The mean μ of the source, (D,).
        deviation: The standard deviation σ of the source, (D,).
        content: The weight c of the term that keeps the directions of the features.
    """
    style = (out.mean(dim=1) - mean).square().sum() + (_std(out, 1) - deviation).square().sum()
    if not content:
        return style
    return style + content * (1 - F.cosine_similarity(out, z, dim=-1)).mean(dim=1).sum()


def closed_form(z: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the β and the γ, (G, 1, D), with which the loss is zero if c = 0.

    Args:
        z: The features, (G, M, D).
        mean: The mean μ of the source, (D,).
        deviation: The standard deviation σ of the source, (D,).
    """
    gamma = (_std(z, 1).clamp(min=TINY) / deviation.clamp(min=TINY)).log()
    return z.mean(dim=1, keepdim=True) - mean, gamma.unsqueeze(1)


def _std(tokens: Tensor, dim: int) -> Tensor:
    return tokens.std(dim=dim, correction=0)


@dataclass(frozen=True)
class BeIN:
    """A predictor that adapts β and γ to the test images, by default to each image separately.

    Attributes:
        steps: The number of steps of Adam; infinity for the closed form, which ignores `content`.
        rate: The learning rate of Adam.
        content: The weight c of the term that keeps the directions of the features.
        together: True if all images of a batch share β and γ.
    """

    adapts: ClassVar[bool] = True

    steps: float = 1
    rate: float = 1e-3
    content: float = 1.0
    together: bool = False

    def check(self, method: Method) -> None:
        """Checks that the clients measure the statistics of features.

        Args:
            method: The fine-tuning method of the run.

        Raises:
            UserError: If no part of the method measures statistics of features.
        """
        if not set(FeatureStatistics.measured) <= set(method.measured):
            raise _without_statistics(f"method {method.name} measures no statistics of features")

    def __call__(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits of the adapted model.

        Raises:
            UserError: If the model has no statistics of features.
        """
        try:
            block, statistics = watched(model)
        except LookupError as error:
            raise _without_statistics(str(error)) from None
        with torch.no_grad():
            if not statistics.measured:
                return _logits(model, images)
            with hooked(block, partial(self._adapt, model, statistics)):
                return _logits(model, images)

    def _adapt(
        self, model: Any, statistics: Statistics, block: nn.Module, inputs: Any, out: Tensor
    ) -> Tensor:
        """Returns the outputs of the block with adapted patch tokens, (B, T, D)."""
        del block, inputs
        z = patch_tokens(model, out).float() if out.dtype.itemsize < 4 else patch_tokens(model, out)
        prefix = out[:, : out.shape[1] - z.shape[1]]
        adapted = self.adapted(z, statistics.mean.detach(), statistics.deviation.detach())
        return torch.cat([prefix, adapted.to(out.dtype)], dim=1)

    def adapted(self, z: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
        """Returns adapted features of patches.

        Args:
            z: The features of the patches of a batch, (B, N, D).
            mean: The mean μ of the source, (D,).
            deviation: The standard deviation σ of the source, (D,).
        """
        groups = z.flatten(0, 1).unsqueeze(0) if self.together else z
        if math.isinf(self.steps):
            beta, gamma = closed_form(groups, mean, deviation)
        else:
            beta, gamma = self.descended(groups, mean, deviation)
        return restyled(z, mean, beta, gamma)

    @torch.enable_grad()
    def descended(self, z: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Returns β and γ, (G, 1, D), after the steps of Adam; z has the shape (G, M, D)."""
        beta, gamma = (z.new_zeros(len(z), 1, z.shape[-1], requires_grad=True) for _ in range(2))
        adam = torch.optim.Adam([beta, gamma], lr=self.rate)
        for _ in range(int(self.steps)):
            out = restyled(z, mean, beta, gamma)
            loss = style_loss(out, z, mean, deviation, self.content)
            beta.grad, gamma.grad = torch.autograd.grad(loss, (beta, gamma))
            adam.step()
        return beta.detach(), gamma.detach()


@dataclass(frozen=True)
class ClosedFormBeIN(BeIN):
    """A predictor that gives the features of each image exactly the statistics of the source."""

    steps: float = math.inf


@dataclass(frozen=True)
class BatchBeIN(ClosedFormBeIN):
    """A predictor that gives the features of a whole batch the statistics of the source.

    The logits of an image depend on the other images of its batch.
    """

    together: bool = True


def _without_statistics(cause: str) -> UserError:
    return UserError(
        f"evaluation.predictor: {cause}; add them to the method, for example "
        "--method lora+feature_statistics"
    )


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits
