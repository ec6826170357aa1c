"""Means over a client's images in a round, which a part of a method measures during training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RoundMean:
    """The mean of a tensor over a round, summed up in float64.

    Args:
        parameter: The tensor that gets the mean.

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
        """Adds the sum over some images or tokens to the total, and their number to the count."""
        self.total.add_(total)
        self.count += count

    @torch.no_grad()
    def store(self) -> None:
        """Copies the mean into the parameter; without images the parameter stays as it is."""
        if self.count:
            self.parameter.copy_(self.total / self.count)
