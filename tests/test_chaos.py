"""A few of the disturbed runs of `make chaos`: they end with the same bits, or stop clearly."""

from __future__ import annotations

import pytest

from tests.chaos import Chaos
from tests.processes import PROC

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROC.exists(), reason="finds processes as Linux tells them"),
]


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Chaos:
    return Chaos(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize(
    "fault", ["driver killed (SIGKILL)", "Ctrl-C or SIGTERM", "checkpoint damaged"]
)
def test_a_run_that_is_disturbed_ends_with_the_same_bits(chaos: Chaos, fault: str) -> None:
    assert chaos.run(3, fault, "coded")[2] == "same bits"


def test_one_worker_of_a_round_is_killed_and_all_twenty_updates_arrive(chaos: Chaos) -> None:
    """It is the outcome only if no line of `rounds.jsonl` has a failure."""
    assert chaos.run(0, "one worker killed", "twenty clients")[2] == "same bits"
