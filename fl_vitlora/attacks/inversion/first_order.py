"""The published ways of gradient matching, which optimise all pixels with Adam.

*Inverting gradients* (Geiping et al., NeurIPS 2020, arXiv 2003.14053) minimises the cosine distance
of the gradients plus the total variation, by the signs of the derivatives. *GradViT* (Hatamizadeh
et al., CVPR 2022, arXiv 2203.11894) minimises the squared distance of the gradients. In the second
half of the search, image priors and the patch prior are added. GradViT's image prior is the batch
normalisation of another, convolutional network. As there is no such network here, total variation
replaces the prior. GradViT's distance between several seeds is left out: there is one seed.

Letters in shapes: B images, C channels, H × W pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fl_vitlora.attacks.clock import UNLIMITED, Clock
from fl_vitlora.attacks.inversion.distances import cosine_distance, residuals
from fl_vitlora.attacks.inversion.in_span import SpanProblem
from fl_vitlora.attacks.inversion.priors import seams, total_variation

Variant = Literal["inverting gradients", "GradViT"]
RATE = 0.1  # rate of Adam for pixels in [-1, 1]; after each share in `FALLS` it becomes a tenth
FALLS = (3 / 8, 5 / 8, 7 / 8)
VARIATION, SEAMS = 1e-2, 1e-2  # weights of the priors


def match(
    problem: SpanProblem,
    shape: tuple[int, int, int],
    variant: Variant,
    steps: int,
    clock: Clock = UNLIMITED,
) -> Tensor:
    """Reconstructs images from a gradient. The search always starts from the same noise.

    Args:
        problem: The gradient, and the model that computes it. The span of the problem is not used.
        shape: The shape (C, H, W) of an image.
        variant: The published attack.
        steps: The number of steps of Adam.
        clock: The clock that is asked before every step.

    Returns:
        The images, in [-1, 1], (B, C, H, W).

    Raises:
        OutOfTimeError: If the time budget of the clock is spent.
    """
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(len(problem.classes), *shape, generator=draw)
    images = (noise / 2).clamp(-1, 1).to(next(iter(problem.target.values())).dtype)
    images.requires_grad_()
    adam = torch.optim.Adam([images], lr=RATE)
    falls = [int(share * steps) for share in FALLS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, falls, gamma=0.1)
    for number in range(steps):
        clock.check()
        adam.zero_grad()
        loss = loss_of(problem, images, variant, late=number >= steps // 2)
        (images.grad,) = torch.autograd.grad(loss, [images])
        if variant == "inverting gradients":
            images.grad.sign_()
        adam.step()
        schedule.step()
        with torch.no_grad():
            images.clamp_(-1, 1)
    return images.detach()


def loss_of(problem: SpanProblem, images: Tensor, variant: Variant, *, late: bool) -> Tensor:
    """Returns the loss that a variant minimises.

    Args:
        problem: The gradient, and the model that computes it.
        images: The images, (B, C, H, W).
        variant: The published attack.
        late: True in the second half of the search.
    """
    gradient = problem.model.gradient(images, problem.classes)
    if variant == "inverting gradients":
        return cosine_distance(gradient, problem.target) + VARIATION * total_variation(images)
    distance = residuals(gradient, problem.target, problem.exact).square().sum()
    if late:
        distance = distance + VARIATION * total_variation(images)
        distance = distance + SEAMS * seams(images, problem.patch_size)
    return distance
