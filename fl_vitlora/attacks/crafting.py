"""Crafts a model whose update is one image, and reads the image out of the update.

The crafted patch embedding is zero, except for one output k, whose kernel is ε·u. So the tokens
hardly depend on the image, and the gradients of the tokens are the same for all images, up to a
factor:

    ∂loss/∂tokenᵢ ≈ p(x)·a·dᵢ,    dᵢ = ∂(h·f)/∂tokenᵢ at tokens of zero.

f is the input of the head, and dᵢ is known to everyone who has the frozen weights. The head is
zero, except for the row a·h of a class that the client does not have. The factor p(x) is the
probability of this class. The factor is exponential in a projection s(x) of the image, and tiny:

    log p(x) = κ·(s(x) - level) - `DEPTH` - log(L - 1),    s(x) = Σᵢ dᵢₖ·(u·xᵢ).

So the image with the largest s(x) outweighs all other images of the client by a factor of
exp(κ·gap), where gap is the difference between the two largest projections. This holds in whichever
training step the client uses the image. The update of the patch embedding is then Σᵢ dᵢ·xᵢᵀ of this
one image, times a number that follows from the change of the bias. Least squares give all patches
xᵢ of the image.

An optimiser of the Adam family divides gradients by their size plus 10⁻⁸. Gradients far below 10⁻⁸
are in effect divided by 10⁻⁸. The step is then proportional to the gradient, as in plain descent.

Source: the idea of crafted layers that let one sample through comes from Fowl et al., ICLR 2022
(arXiv 2110.13057), from PEFTLeak (arXiv 2506.04453) for adapters, and from MineGrad
(arXiv 2608.01521) for LoRA. Here the probability of an absent class is the gate, because the
default method trains no layer that has a nonlinearity after it.

Letters in shapes: N patches, D entries of a patch, W width of the model, L classes,
F features (numbers in the input of the head).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.state import State

BIAS, HEAD, HEAD_BIAS = "patch_embed.proj.bias", "head.weight", "head.bias"
NAMES = (WEIGHT, BIAS, HEAD, HEAD_BIAS)
DIRECTIONS = 64  # directions h that are tried
STRENGTH = 2e-3  # ε; the tokens are linear in the image up to a share of this size
FAINT = 1e-11  # length of the row of the head in a model that lets all images through
DEPTH = 60.0  # at its level the gate has the probability exp(-60) = 9e-27
LARGEST = 5e5  # largest number in the head; clients refuse numbers beyond 1e6


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The dependence of the head's input f on the tokens, at tokens of zero.

    Attributes:
        direction: The direction h among the features, (F,).
        feature: The number h·f at tokens of zero.
        tokens: The gradients dᵢ = ∂(h·f)/∂tokenᵢ, float64 (N, W).
    """

    direction: Tensor
    feature: Tensor
    tokens: Tensor

    @property
    def gate(self) -> int:
        """Returns the number k of the output of the patch embedding that carries the projection."""
        return int(self.tokens.abs().sum(dim=0).argmax())

    @property
    def weights(self) -> Tensor:
        """Returns the weight dᵢₖ of each patch in the projection, (N,)."""
        return self.tokens[:, self.gate]

    def projection(self, patches: Tensor, kernel: Tensor) -> Tensor:
        """Returns s(x) = Σᵢ dᵢₖ·(u·xᵢ) of images, (...,).

        Args:
            patches: The patches, (..., N, D).
            kernel: The kernel u, (D,).
        """
        return (patches @ kernel) @ self.weights


def sensitivity(model: nn.Module, image_shape: tuple[int, int, int]) -> Sensitivity:
    """Looks for the direction h in which the gradients of the tokens are the most different.

    Args:
        model: A model with a linear layer `head` whose input has one row for each image.
        image_shape: The shape (C, H, W) of an image.

    Returns:
        The sensitivity for one of 64 random directions: the one for which the smallest singular
        value of the gradients, divided by the largest, is the largest.
    """
    model = copy.deepcopy(model).double().eval()
    seen = dict[str, Tensor]()

    def without_image(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen["tokens"] = torch.zeros_like(output).requires_grad_()
        return seen["tokens"]

    def read(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen["features"] = args[0]

    model.get_submodule("patch_embed").register_forward_hook(without_image)
    model.get_submodule("head").register_forward_pre_hook(read)
    model(torch.zeros(1, *image_shape, dtype=torch.float64))
    features, draw = seen["features"][0], torch.Generator().manual_seed(0)
    usual = features.detach()
    best, found = -1.0, None
    for _ in range(DIRECTIONS):
        direction = torch.randn(len(features), generator=draw, dtype=torch.float64)
        direction -= (direction @ usual) / (usual @ usual) * usual  # so that h·f is small
        direction /= direction.norm()
        (gradient,) = torch.autograd.grad(direction @ features, seen["tokens"], retain_graph=True)
        values = torch.linalg.svdvals(gradient[0])
        if float(values[-1] / values[0]) > best:
            best = float(values[-1] / values[0])
            value = (direction @ features).detach()
            found = Sensitivity(direction=direction, feature=value, tokens=gradient[0])
    assert found is not None
    return found


def crafted(
    start: State, known: Sensitivity, *, absent: int, kernel: Tensor, slope: float, level: float
) -> State:
    """Returns the tensors of a model that lets through the image with the largest projection.

    Args:
        start: The exchanged tensors of an honest model, with all of `NAMES`.
        known: The dependence of the features on the tokens.
        absent: The number of a class that the client does not have.
        kernel: The kernel u of the projection, (D,).
        slope: The slope κ. With 0 all images have the same weight, and the update is their mean.
        level: The projection at which the logarithm of the gate is near -`DEPTH`.
    """
    tensors = dict(start)
    for name in NAMES:
        tensors[name] = torch.zeros_like(start[name])
    tensors[WEIGHT].flatten(1)[known.gate] = (STRENGTH * kernel).float()
    if slope:
        size = min(slope / STRENGTH, LARGEST / float(known.direction.abs().max()))
        slope = size * STRENGTH
        tensors[HEAD][absent] = (size * known.direction).float()
        tensors[HEAD_BIAS][absent] = -size * float(known.feature) - slope * level - DEPTH
    else:
        tensors[HEAD][absent] = (FAINT * known.direction).float()
    return tensors


def read(delta: State, known: Sensitivity) -> tuple[Tensor, float]:
    """Reads the patches of the image that a crafted model let through.

    Args:
        delta: The change of the tensors.
        known: The dependence of the features on the tokens.

    Returns:
        The patches as the model reads them, float64 (N, D), and the number by which they were
        multiplied. If nothing came back, the patches are zeros and the number is 0.
    """
    changed = torch.cat([delta[WEIGHT].flatten(1), delta[BIAS].unsqueeze(1)], dim=1).double()
    others = torch.arange(len(changed)) != known.gate
    solved = torch.linalg.lstsq(known.tokens[:, others].T, changed[others], driver="gelsd")[0]
    factor = float(solved[:, -1].median())
    patches = solved[:, :-1]
    return (patches / factor if factor else torch.zeros_like(patches)), factor
