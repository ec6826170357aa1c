"""The importance of the entries of tensors, and a schedule for the share of entries that is kept.

The importance of an entry is the product of its sensitivity Ī and its uncertainty U. The
sensitivity is a running mean of the sizes I of steps or gradients. The uncertainty is a running
mean of the distance between I and Ī:

    Ī ← 0.85·Ī + 0.15·I,    U ← 0.95·U + 0.05·|I - Ī|,    score = Ī·U

The cubic schedule gives the share of the entries that is kept; the share falls from 1 to 0.

Source: The scores come from PLATON, Zhang et al., arXiv 2206.12562. The schedule comes from Zhu and
Gupta, arXiv 1710.01878.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

KEEP_MEAN, KEEP_SPREAD = 0.85, 0.95  # the weights of the old Ī and the old U


def smoothed(size: Tensor, mean: Tensor | float, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sensitivity Ī and the uncertainty U after one step.

    Args:
        size: The sizes I of the entries.
        mean: The sensitivity Ī before this step, in the shape of `size`; zero at first.
        spread: The uncertainty U before this step, in the shape of `size`; zero at first.
    """
    mean = KEEP_MEAN * mean + (1 - KEEP_MEAN) * size
    return mean, KEEP_SPREAD * spread + (1 - KEEP_SPREAD) * (size - mean).abs()


def cubic_share(time: float, begin: float, end: float) -> float:
    """Returns the share of the entries that is kept: 1 before `begin`, 0 from `end` on.

    Example:
        >>> [cubic_share(time, 2.0, 6.0) for time in (1, 2, 4, 6, 7)]
        [1.0, 1.0, 0.125, 0.0, 0.0]
    """
    if time < begin:
        return 1.0
    return max(0.0, 1 - (time - begin) / (end - begin)) ** 3 if end > begin else 0.0


def below(scores: Mapping[str, Tensor], remaining: float) -> list[str]:
    """Returns the names of the matrices whose mean score is below a threshold.

    Args:
        scores: The scores of the entries of each matrix.
        remaining: The share of all entries whose score is above the threshold. This share
            determines the threshold.

    Example:
        >>> scores = {name: torch.full((2,), s) for name, s in [("a", 1.0), ("b", 2.0), ("c", 9.0)]}
        >>> below(scores, 0.5), below(scores, 0.0), below(scores, 1.0)
        (['a'], ['a', 'b', 'c'], [])
    """
    if not scores or remaining >= 1:
        return []
    every = torch.cat([score.flatten() for score in scores.values()])
    threshold = every.kthvalue(max(1, math.floor(len(every) * (1 - remaining)))).values
    means = {name: score.mean() for name, score in scores.items()}
    return [n for n, mean in means.items() if mean < threshold or remaining == 0]
