"""Time on the wire: numbers that a reader can check by hand."""

from __future__ import annotations

import pytest

from fl_vitlora.communication.ledger import Direction, Entry, Ledger
from fl_vitlora.communication.link import Link, transfer_seconds

LINK = Link(uplink=8, downlink=80, latency=0.5)  # a byte takes 1 µs up and 0.1 µs down


def entry(server_round: int, client: int, direction: Direction, size: int) -> Entry:
    return Entry(round=server_round, client=client, direction=direction, overhead=size)


def test_a_message_takes_its_latency_and_its_bits():
    assert LINK.seconds("uplink", 2_000_000) == pytest.approx(2.5)
    assert LINK.seconds("downlink", 2_000_000) == pytest.approx(0.7)


def test_a_round_takes_as_long_as_its_slowest_client():
    ledger = Ledger(
        [
            entry(1, 0, "downlink", 1_000_000),  # 0.6
            entry(1, 0, "uplink", 1_000_000),  # 1.5
            entry(1, 1, "downlink", 5_000_000),  # 1.0
            entry(1, 1, "uplink", 10),  # 0.50001
            entry(2, 1, "downlink", 0),  # 0.5
        ]
    )
    assert transfer_seconds(ledger, LINK) == pytest.approx({1: 2.1, 2: 0.5})


def test_nothing_sent_takes_no_time():
    assert transfer_seconds([], LINK) == {}
