"""A mean over a round does not depend on how the images are divided into batches."""

from __future__ import annotations

import torch
from torch import nn

from fl_vitlora.finetuning.round_means import RoundMean


def mean_of(values: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    mean = RoundMean(nn.Parameter(torch.full((3,), 7.0, dtype=values.dtype)))
    for batch in torch.split(values, list(sizes)):
        mean.add(batch.sum(dim=0), len(batch))
    mean.store()
    return mean.parameter.detach()


def test_batches_of_any_sizes_give_the_mean_of_all_rows():
    torch.manual_seed(0)
    values = torch.randn(10, 3, dtype=torch.float64)
    for sizes in ((10,), (1, 9), (4, 4, 2)):
        assert torch.allclose(mean_of(values, sizes), values.mean(dim=0), atol=1e-14, rtol=0)


def test_without_images_the_tensor_stays_as_it_is():
    assert mean_of(torch.zeros(0, 3), ()).tolist() == [7.0, 7.0, 7.0]
