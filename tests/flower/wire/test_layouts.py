"""The layouts of a message and of the reply to it: derived once, and refused where impossible."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.communication.packing import Layout
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import MessageLayouts

LAYOUT = Layout((("p.lora_A", (2, 3)), ("p.lora_B", (4, 2)), ("head.weight", (3, 4))))
RECORDS = (messages.ARRAYS, messages.BROADCAST, messages.MERGED, messages.INCREMENTS)
NAMES = st.frozensets(st.sampled_from(LAYOUT.names))


def layouts(config: Mapping[str, object] | None = None, rank: int | None = None) -> MessageLayouts:
    return MessageLayouts.of(config or {}, LAYOUT, rank)


def test_without_scalars_a_message_and_its_reply_hold_all_tensors():
    assert layouts().sent is layouts().trained is layouts().whole is LAYOUT


@given(cached=NAMES, rank=st.none() | st.integers(1, 2))
def test_what_is_cached_is_not_sent_but_trained(cached: frozenset[str], rank: int | None):
    found = layouts({messages.CACHED: LAYOUT.mark(cached)}, rank)
    assert found.cached == cached
    assert found.sent == layouts(rank=rank).whole.without(cached)
    assert found.trained == layouts(rank=rank).whole


def test_what_rests_is_not_sent_back():
    found = layouts({messages.FROZEN: [".lora_A"]})
    assert found.trained.names == ("p.lora_B", "head.weight")
    assert found.of_reply(messages.ARRAYS) is found.of_reply(messages.REPORT)
    assert found.sent == LAYOUT


def test_a_smaller_rank_cuts_low_rank_matrices():
    shapes = (("p.lora_A", (1, 3)), ("p.lora_B", (4, 1)), ("head.weight", (3, 4)))
    assert layouts(rank=1).whole.shapes == shapes


def test_each_layout_is_derived_once():
    marks = LAYOUT.mark(frozenset({"p.lora_A"}))
    found = layouts({messages.FROZEN: ["weight"], messages.CACHED: marks}, rank=1)
    for name in ("whole", "sent", "trained", "cached", "merged_ranks"):
        assert getattr(found, name) is getattr(found, name)


def test_pairs_of_several_rounds_have_one_layout():
    found = layouts({messages.MERGED_RANKS: [1, 0, 2]})
    assert found.merged_ranks == [{"p": 1}, {"p": 0}, {"p": 2}]
    assert found.of_record(messages.MERGED).shapes == (
        ("p.merged_A", (3, 3)),
        ("p.merged_B", (4, 3)),
    )
    assert found.of_record(messages.INCREMENTS).shapes == (("p", (4, 3)),)


@pytest.mark.parametrize("record", [*RECORDS, messages.REPORT, "other"])
def test_nobody_asked_for_other_records(record: str):
    sent, returned = record in RECORDS, record in (messages.ARRAYS, messages.REPORT)
    for of, known in ((layouts().of_record, sent), (layouts().of_reply, returned)):
        if known:
            assert isinstance(of(record), Layout)
        else:
            with pytest.raises(ValueError, match=f"record '{record}' was not asked for"):
                of(record)


@pytest.mark.parametrize("rank", [-1, 0.5, "1", True])
def test_ranks_that_are_no_whole_numbers_are_refused(rank: object):
    with pytest.raises(ValueError, match="merged-ranks must be whole numbers from 0"):
        layouts({messages.MERGED_RANKS: [rank]}).of_record(messages.MERGED)


def test_a_mask_of_another_model_is_refused():
    with pytest.raises(ValueError, match="mask of 2 bytes does not fit 3 tensors"):
        _ = layouts({messages.CACHED: b"xy"}).sent
