"""Who shares which GPU."""

from __future__ import annotations

import pytest

from fl_vitlora.flower.simulation import Workers


@pytest.mark.parametrize(
    ("count", "gpus", "share"),
    [(4, 1, 1 / 4), (2, 2, 1), (3, 2, 1 / 2), (5, 2, 1 / 3), (2, 3, 1), (2, 0, 0)],
)
def test_a_whole_number_of_shares_makes_up_a_gpu(count: int, gpus: int, share: float) -> None:
    workers = Workers(device="cuda" if gpus else "cpu", count=count, gpus=gpus)
    assert workers.resources == {"num_cpus": 1, "num_gpus": share}
