"""The importance of entries: running means, and a threshold from a cubic schedule."""

from __future__ import annotations

import pytest
import torch

from fl_vitlora.finetuning.importance import cubic_share, smoothed


def test_constant_sizes_become_the_sensitivity_and_leave_no_uncertainty():
    size, mean, spread = torch.tensor([2.0, 0.0]), torch.zeros(2), torch.zeros(2)
    for _ in range(400):
        mean, spread = smoothed(size, mean, spread)
    assert torch.allclose(mean, size, atol=1e-5)
    assert float(spread.max()) < 1e-5


def test_the_first_values_are_those_of_the_formula():
    mean, spread = smoothed(torch.tensor([2.0]), 0.0, torch.zeros(1))
    assert mean.item() == pytest.approx(0.3)
    assert spread.item() == pytest.approx(0.05 * 1.7)


def test_the_share_falls_evenly_in_the_third_root_and_never_below_zero():
    shares = [cubic_share(time, 0, 10) for time in range(13)]
    assert shares == sorted(shares, reverse=True)
    for time, share in enumerate(shares[:11]):
        assert share == pytest.approx((1 - time / 10) ** 3, abs=1e-12)
    assert shares[11:] == [0.0, 0.0]
    assert cubic_share(3, 3, 3) == 0.0
