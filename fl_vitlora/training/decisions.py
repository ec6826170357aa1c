"""The decisions of a model: the class that it chooses for each image, and how sure it is.

An evaluation computes the accuracy from the decisions. The figures of each class, the confusion
matrix and the calibration of a run are also computed from the decisions.

Letters in shapes: n images, L classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Decisions:
    """The decisions of a model for n images whose labels are known.

    Attributes:
        labels: The number of the true class of each image, int64 (n,).
        chosen: The number of the class with the largest logit, int64 (n,).
        confidence: The probability of the chosen class, float32 (n,), from the softmax of the
            logits.
    """

    labels: Tensor
    chosen: Tensor
    confidence: Tensor

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> Decisions:
        """Returns the decisions for a batch.

        Args:
            logits: The outputs of the model, (n, L).
            labels: The numbers of the true classes, int64 (n,).

        Example:
            >>> found = Decisions.of(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([1]))
            >>> found.chosen.tolist(), round(float(found.confidence), 3)
            ([2], 1.0)
        """
        confidence = logits.float().softmax(dim=-1).amax(dim=-1)
        return cls(labels=labels, chosen=logits.argmax(dim=-1).cpu(), confidence=confidence.cpu())

    @classmethod
    def joined(cls, batches: Sequence[Decisions]) -> Decisions:
        """Returns the decisions of several batches, one after the other."""
        return cls(
            labels=torch.cat([batch.labels for batch in batches]),
            chosen=torch.cat([batch.chosen for batch in batches]),
            confidence=torch.cat([batch.confidence for batch in batches]),
        )
