"""The ledger adds up what passed, in any grouping, and writes it as a table."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.budget import affords, cost_of_evaluation
from fl_vitlora.communication.ledger import Direction, Entry, Ledger

GROUPS = ("head", "lora_A", "masked")
ENTRIES = st.lists(
    st.builds(
        Entry,
        round=st.integers(0, 3),
        purpose=st.sampled_from(["greeting", "training", "evaluation"]),
        client=st.integers(-1, 3),
        direction=st.sampled_from(["uplink", "downlink"]),
        groups=st.dictionaries(
            st.sampled_from(["head", "lora_A", "masked"]), st.integers(0, 10**9)
        ),
        overhead=st.integers(0, 10**4),
    ),
    max_size=12,
)


def entry(server_round: int, direction: Direction, payload: int, overhead: int) -> Entry:
    """A message of training, but that of round 0, the greeting."""
    return Entry(
        round=server_round,
        purpose="training" if server_round else "greeting",
        client=0,
        direction=direction,
        groups={"head": payload} if payload else {},
        overhead=overhead,
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
    assert ledger.total() == sum(ledger.total(client=client) for client in range(-1, 4))
    assert ledger.total() == sum(
        ledger.total(purpose=purpose) for purpose in ("greeting", "training", "evaluation")
    )
    assert ledger.by_round() == {
        number: ledger.total(server_round=number) for number in {one.round for one in entries}
    }
    assert sum(ledger.by_group().values()) == sum(one.payload for one in entries)
    assert ledger.by_group(2) == Ledger(one for one in entries if one.round == 2).by_group()


@given(entries=ENTRIES)
def test_the_table_has_a_line_for_every_message_sorted(entries: list[Entry]):
    lines = list(csv.DictReader(io.StringIO(Ledger(entries).to_csv())))
    assert len(lines) == len(entries)
    assert sum(int(line["payload"]) + int(line["overhead"]) for line in lines) == sum(
        one.total for one in entries
    )
    for line in lines:
        assert int(line["total"]) == int(line["payload"]) + int(line["overhead"])
        named = [int(line[group]) for group in GROUPS if group in line]
        assert int(line["payload"]) == sum(named)
    rank = {"greeting": 0, "training": 1, "evaluation": 2}  # as they follow in a round
    order = [
        (int(line["round"]), rank[line["purpose"]], int(line["client"]), line["direction"])
        for line in lines
    ]
    assert order == sorted(order)


def test_the_table_of_a_small_ledger():
    assert small().to_csv().splitlines()[:3] == [
        "round,purpose,client,direction,payload,overhead,total,head",
        "0,greeting,0,downlink,0,7,7,0",
        "0,greeting,0,uplink,0,5,5,0",
    ]


def test_evaluation_counts_to_its_round_and_stands_after_training_in_the_table():
    ledger = small()
    ledger.record(replace(entry(1, "downlink", 100, 4), purpose="evaluation"))
    assert ledger.total(server_round=1) == 110 + 60 + 104
    lines = ledger.to_csv().splitlines()
    assert lines[5:7] == [
        "1,evaluation,0,downlink,100,4,104,100",
        "2,training,0,downlink,100,10,110,100",
    ]


@dataclass(frozen=True, kw_only=True)
class Watched(Entry):
    """An entry that notes its round whenever one of its attributes is read."""

    reads: ClassVar[list[int]] = []

    def __getattribute__(self, name: str) -> Any:
        Watched.reads.append(object.__getattribute__(self, "round"))
        return super().__getattribute__(name)


def test_what_is_asked_about_a_round_reads_no_entry_of_another_round():
    ledger = Ledger(Watched(**asdict(entry(number, "uplink", 9, 1))) for number in range(9))
    Watched.reads.clear()
    assert (ledger.total("uplink", 5), ledger.by_group(5)) == (10, {"head": 9})
    assert set(Watched.reads) == {5}
    assert sum(one.total for one in ledger.of_round(5)) == 10
    assert set(Watched.reads) == {5}


def test_whether_a_budget_suffices_reads_no_entry():
    ledger = Ledger(Watched(**asdict(entry(number, "uplink", 9, 1))) for number in range(9))
    Watched.reads.clear()
    assert affords(1000, ledger, 9, reserve=cost_of_evaluation(ledger, 3))
    assert (ledger.total(), ledger.total("downlink")) == (90, 0)
    assert not Watched.reads


@given(ENTRIES)
def test_kept_sums_are_the_sums_over_all_entries(entries: list[Entry]):
    ledger = Ledger([entry(7, "uplink", 5, 5)])
    ledger.replace(Ledger(entries))
    assert ledger.total("uplink") == sum(e.total for e in entries if e.direction == "uplink")
    assert list(ledger.by_group()) == list(dict.fromkeys(g for e in entries for g in e.groups))
    assert list(ledger.by_round()) == list(dict.fromkeys(e.round for e in entries))
    assert ledger.largest("downlink") == max(
        (e.total for e in entries if e.direction == "downlink"), default=0
    )
    measured = [e for e in entries if e.purpose == "evaluation"]
    assert ledger.by_round("evaluation") == Ledger(measured).by_round()
    assert [e for number in range(4) for e in ledger.of_round(number)] == sorted(
        entries, key=lambda e: e.round
    )


def test_a_prefix_does_not_grow_with_its_ledger():
    ledger = small()
    prefix = ledger.prefix()
    first = list(ledger)
    ledger.record(entry(3, "uplink", 1, 1))
    assert (prefix.length, list(prefix.after(0)), list(prefix.after(3))) == (5, first, first[3:])
    ledger.replace(Ledger())
    assert list(prefix.after(0)) == first
