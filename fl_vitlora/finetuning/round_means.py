"""Means over a client's images in a round; parts of a method measure such means in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RoundMean:
    """The mean of a tensor over the images or tokens of a round, computed in float64.

    Args:
        parameter: The tensor to which `store` copies the mean.

    Example:
        >>> mean = RoundMean(nn.Parameter(torch.zeros(2)))
        >>> mean.add(torch.tensor([3.0, 6.0]), 3)
        >>> mean.store()
        >>> mean.parameter.tolist()
        [1.0, 2.0]
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.total = torch.zeros_like(parameter, dtype=torch.float64)
        self.count = 0

    def add(self, total: Tensor, count: int) -> None:
        """Adds the sum over some images or tokens, and the number of these images or tokens."""
        self.total.add_(total)
        self.count += count

    @torch.no_grad()
    def store(self) -> None:
        """Copies the mean into the parameter; without images the parameter does not change."""
        if self.count:
            self.parameter.copy_(self.total / self.count)
