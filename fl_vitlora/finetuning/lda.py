"""Computes a first head by linear discriminant analysis from statistics of the clients' images.

A head that starts at zero needs many rounds before the gradients of the body become useful. This
part computes a better first head. In round 1 nothing is trained. Each client passes its N images
through the pre-trained model. With the features z (the inputs of the head) and z̃ = [z, 1], the
client measures two statistics:

    S   = Σ z̃ z̃ᵀ / N                     the sum is over all images
    M_c = Σ z̃ / N                        the sum is over the images of class c

The server averages S and M with the numbers of images as weights, like all tensors. Therefore the
averages are exactly the sums over the images of all clients, divided by the number of these images.
Secure aggregation works if no number is above the setting ``privacy.range``; otherwise the run
stops, because clipped statistics are wrong. The statistics give the share π_c and the mean μ_c of
each class, and the common covariance Σ of the features around the mean of their class:

    π_c = M_c[D],  μ_c = M_c[:D] / π_c,  Σ = S[:D, :D] - Σ_c π_c μ_c μ_cᵀ

For class c, the head of the discriminant analysis with the shrinkage γ has the weights w_c and the
bias b_c:

    w_c = Σ_γ⁻¹ μ_c,  b_c = -½ μ_cᵀ w_c + ln π_c,  Σ_γ = (1 - γ) Σ + γ · (tr Σ / D) · I

From round 2 on the head is trained like any other head, and the clients neither measure nor send
statistics. In round 1 a client sends (D+1)·(D+2)/2 + C·(D+1) numbers, because only the upper
triangle of S is sent. The server sends no statistics in any round. The statistics show exactly how
many images of each class a client has (see the attack `label_counts`). The second moments S of a
client's features tell more about the client's images than a gradient of the head does; we tried no
attack on S. With secure aggregation the server sees only the sum of all clients' statistics.

Sources: Linear discriminant analysis comes from Fisher (1936), and its shrinkage from Friedman's
regularised discriminant analysis (1989). Fed3R (Fanì et al., 2024) sums S and M over clients for a
ridge regression. We use the discriminant analysis instead, because its logits are log-probabilities
under its model of the features. Therefore training with cross-entropy can continue from this head
without a temperature.

Letters in shapes: B batch, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.groups import LORA, exchanged_name
from fl_vitlora.finetuning.part import EVERYTHING, Aggregated, BatchTerm, Part
from fl_vitlora.state import State

PLACE = "class_statistics"  # the name of the module in the model
MOMENTS, MEANS = f"{PLACE}.moments", f"{PLACE}.means"
ROUNDING = 1e-2  # how far the sum of all classes' shares may be from 1, because codecs round


class Statistics(nn.Module):
    """The statistics of the inputs of the head; the model never calls this module.

    Args:
        width: The width D.
        classes: The number of classes C.

    Attributes:
        moments: The upper triangle of S, ((D+1)·(D+2)/2,); zero before and after round 1.
        means: The matrix M, (C, D+1); zero before and after round 1.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.moments = nn.Parameter(torch.zeros((width + 1) * (width + 2) // 2))
        self.means = nn.Parameter(torch.zeros(classes, width + 1))


@dataclass(frozen=True, kw_only=True)
class LDA(Part):
    """The part of a fine-tuning method that computes the first head by discriminant analysis.

    Attributes:
        shrinkage: The weight γ of the spherical covariance, which is a multiple of the identity.
    """

    stackable = True  # no client both measures statistics and trains in one round
    measured = (MOMENTS, MEANS)

    shrinkage: float = setting(0.1, "Weight of the spherical covariance matrix.", "[0, 1]")

    def note(self) -> str:
        """Returns a sentence for the user that says what happens in round 1."""
        return (
            "the head starts from a linear discriminant analysis: in round 1 nothing is trained, "
            "and the clients send means of their images' features (finetuning.head_start=zero "
            "starts the head at zero)"
        )

    def attach(self, model: nn.Module) -> None:
        """Adds the tensors S and M, which hold the statistics, to the model."""
        head = _head_of(model)
        statistics = Statistics(head.in_features, head.out_features)
        model.add_module(PLACE, statistics.to(head.weight))

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the tensors S and M."""
        return [name for name, _ in model.named_parameters() if name.endswith(self.measured)]

    def group(self, name: str) -> str:
        """Returns the group `lora`, whose tensors are sent without a codec by default."""
        del name
        return LORA

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns the tensors that are not trained: all in round 1, later the statistics.

        In round 1 the clients do not train the statistics, but measure them.
        """
        del memory
        return EVERYTHING if server_round == 1 else self.measured

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[BatchTerm]:
        """Measures the statistics of the images in round 1; does not change the loss."""
        statistics: Any = model.get_submodule(PLACE)
        if not statistics.moments.requires_grad:  # in later rounds the statistics rest
            yield lambda labels: 0.0
            return
        classes, size = statistics.means.shape
        second = statistics.means.new_zeros(size, size, dtype=torch.float64)
        means = statistics.means.new_zeros(classes, size, dtype=torch.float64)
        features = list[Tensor]()

        def count(labels: Tensor) -> float:
            z = F.pad(features.pop().detach().double(), (0, 1), value=1.0)  # (B, D+1)
            second.add_(z.T @ z)
            means.index_add_(0, labels, z)
            return 0.0

        hook = _head_of(model).register_forward_pre_hook(
            lambda _, inputs: features.append(inputs[0])
        )
        try:
            yield count
        finally:
            hook.remove()
        if images := float(second[-1, -1]):
            with torch.no_grad():
                statistics.moments.copy_(upper_triangle(second) / images)
                statistics.means.copy_(means / images)

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Replaces the head after round 1 by the head of the discriminant analysis.

        After round 1 the statistics are not needed, so they become zero again. Every client knows
        that the statistics are zero, so the server need not send the statistics.

        Raises:
            UserError: If the statistics are no longer means over images, because the strategy or
                noise has changed the statistics.
        """
        if known.round > 1:
            return {}, dict(memory)
        statistics = {n: known.after[exchanged_name(n, LORA)] for n in (MOMENTS, MEANS)}
        moments, means = statistics.values()
        _expect_means(moments, means)
        weight, bias = discriminant(moments.double(), means.double(), self.shrinkage)
        used = {exchanged_name(n, LORA): torch.zeros_like(t) for n, t in statistics.items()}
        return {"head.weight": weight, "head.bias": bias, **used}, dict(memory)

    def merge(self, model: nn.Module) -> None:
        """Removes the measured statistics from the model."""
        delattr(model, PLACE)


def discriminant(moments: Tensor, means: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Computes the head of the linear discriminant analysis with equal covariances.

    A class without images gets the weight zero. Its bias is the bias of a class that has 1/2000 of
    all images.

    Args:
        moments: The upper triangle of S, ((D+1)·(D+2)/2,).
        means: The matrix M, (C, D+1).
        shrinkage: The weight γ of the spherical covariance, in [0, 1].

    Returns:
        A pair of the weight, (C, D), and the bias, (C,), of the head.
    """
    width = means.shape[1] - 1
    share = means[:, -1]
    centre = means[:, :-1] / share.clamp(min=torch.finfo(share.dtype).tiny).unsqueeze(1)
    total = from_upper_triangle(moments, width + 1)[:width, :width]
    within = total - torch.einsum("c,ci,cj->ij", share, centre, centre)
    sphere = within.diagonal().mean().clamp(min=torch.finfo(within.dtype).tiny)
    shrunk = (1 - shrinkage) * within + shrinkage * sphere * torch.eye(width).to(within)
    weight = torch.linalg.lstsq(shrunk, centre.T, driver="gelsd").solution.T.contiguous()
    bias = share.clamp(min=5e-4).log() - 0.5 * (centre * weight).sum(dim=1)
    return weight, bias


def upper_triangle(matrix: Tensor) -> Tensor:
    """Returns the entries on and above the diagonal of a matrix (n, n), row by row.

    Example:
        >>> upper_triangle(torch.tensor([[1, 2], [2, 3]])).tolist()
        [1, 2, 3]
    """
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]


def from_upper_triangle(entries: Tensor, size: int) -> Tensor:
    """Returns the symmetric matrix (n, n) with the given entries on and above its diagonal.

    Example:
        >>> from_upper_triangle(torch.tensor([1, 2, 3]), 2).tolist()
        [[1, 2], [2, 3]]
    """
    row, column = torch.triu_indices(size, size)
    matrix = entries.new_zeros(size, size)
    matrix[row, column] = entries
    matrix[column, row] = entries
    return matrix


def has_one_head(model: nn.Module) -> bool:
    """Returns True if a model has exactly one classifier, and the classifier is a linear layer."""
    return isinstance(getattr(model, "head", None), nn.Linear) and not hasattr(model, "head_dist")


def _head_of(model: nn.Module) -> nn.Linear:
    """Returns the classifier of a model.

    Raises:
        UserError: If the model does not have exactly one linear classifier.
    """
    if not has_one_head(model):
        raise UserError(
            f"method lda: {type(model).__name__} does not have one linear classifier named head; "
            "choose a plain ViT, or remove lda"
        )
    head: nn.Linear = model.get_submodule("head")  # type: ignore[assignment]
    return head


def _expect_means(moments: Tensor, means: Tensor) -> None:
    """Checks that the statistics are means: the shares of all classes must add up to one."""
    shares = float(means[:, -1].sum())
    if abs(shares - 1) > ROUNDING or abs(float(moments[-1]) - 1) > ROUNDING:
        raise UserError(
            f"method lda: the statistics of round 1 are not means over images, because the shares "
            f"of the classes add up to {shares:.3g}, not 1; remove noise and lossy codecs "
            "(compression.uplink.other=float32), take --strategy fedavg, or remove lda"
        )
