"""The ledger adds up what passed, in any grouping, and writes it as a table."""

from __future__ import annotations

import csv
import io
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.ledger import Entry, Ledger, full_fine_tuning_bytes

ENTRIES = st.lists(
    st.builds(
        Entry,
        round=st.integers(0, 3),
        client=st.integers(-1, 3),
        direction=st.sampled_from(["uplink", "downlink"]),
        payload=st.integers(0, 10**9),
        overhead=st.integers(0, 10**4),
    ),
    max_size=12,
)


def entry(
    server_round: int, direction: Literal["uplink", "downlink"], payload: int, overhead: int
) -> Entry:
    return Entry(
        round=server_round, client=0, direction=direction, payload=payload, overhead=overhead
    )


def small() -> Ledger:
    return Ledger(
        [
            entry(0, "downlink", 0, 7),
            entry(0, "uplink", 0, 5),
            entry(1, "downlink", 100, 10),
            entry(1, "uplink", 50, 10),
            entry(2, "downlink", 100, 10),
        ]
    )


def test_bytes_are_summed_by_direction_and_round():
    ledger = small()
    assert ledger.total() == 7 + 5 + 110 + 60 + 110
    assert (ledger.total("downlink"), ledger.total("uplink")) == (227, 65)
    assert (ledger.total("downlink", 1), ledger.total("uplink", 2)) == (110, 0)
    assert ledger.total(server_round=0) == 12


@given(entries=ENTRIES)
def test_every_byte_is_in_one_direction_and_one_round(entries: list[Entry]):
    ledger = Ledger()
    for one in entries:
        ledger.record(one)
    assert list(ledger) == entries
    assert ledger.total() == sum(one.payload + one.overhead for one in entries)
    assert ledger.total() == ledger.total("uplink") + ledger.total("downlink")
    assert ledger.total() == sum(ledger.total(server_round=r) for r in range(4))


@given(entries=ENTRIES)
def test_the_table_has_a_line_for_every_message_sorted(entries: list[Entry]):
    lines = list(csv.DictReader(io.StringIO(Ledger(entries).to_csv())))
    assert len(lines) == len(entries)
    assert sum(int(line["payload"]) + int(line["overhead"]) for line in lines) == sum(
        one.total for one in entries
    )
    order = [(int(line["round"]), int(line["client"]), line["direction"]) for line in lines]
    assert order == sorted(order)


def test_the_table_of_a_small_ledger():
    assert small().to_csv().splitlines()[:3] == [
        "round,client,direction,payload,overhead",
        "0,0,downlink,0,7",
        "0,0,uplink,0,5",
    ]


def test_full_fine_tuning_pays_the_whole_model_for_every_message_of_training():
    """Two downlinks of 1000 and one uplink of 900 bytes; the greeting costs its 12 bytes as is."""
    full = full_fine_tuning_bytes(small(), full_downlink=1000, full_uplink=900, rounds=[1, 2])
    assert full == 12 + 2 * 1000 + 900


def test_rounds_that_were_no_training_count_as_they_are():
    full = full_fine_tuning_bytes(small(), full_downlink=1000, full_uplink=900, rounds=[2])
    assert full == 12 + 110 + 60 + 1000
