"""What clients remember is written down as it is, but for secrets."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fl_vitlora.flower.server.client_states import ClientStates, from_tree, to_tree
from fl_vitlora.flower.wire import masking
from tests.storage.test_trees import through_a_file


def remembered() -> RecordDict:
    packed = Array("uint8", (3,), "fl_vitlora.packed", b"abc")
    return RecordDict(
        {
            "kept": ArrayRecord({"packed": packed}),
            "own": ArrayRecord({"w": Array(np.arange(6, dtype=np.float32).reshape(2, 3))}),
            "nothing": ArrayRecord(),
            "which": ConfigRecord({"names": ["a", "b"], "number": 3, "rate": 2.0, "mark": b"\x00"}),
            "metrics": MetricRecord({"loss": 0.5, "steps": [1, 2]}),
        }
    )


def context(client: int, state: RecordDict | None = None) -> Context:
    return Context(1, client, {"partition-id": client}, state or RecordDict(), {})


def test_records_of_all_kinds_come_back_equal() -> None:
    state = remembered()
    again = from_tree(through_a_file(to_tree(state)))
    assert again == state
    assert list(again) == list(state)


def test_a_secret_is_not_written_down() -> None:
    state = remembered()
    state[masking.RECORD] = ConfigRecord({masking.PRIVATE: b"secret"})
    assert from_tree(to_tree(state)) == remembered()


def test_what_a_worker_sends_back_is_lent_to_the_next() -> None:
    states = ClientStates()
    assert len(states.lend(context(3)).state) == 0
    states.note(context(3, remembered()))
    assert states.lend(context(3)).state == remembered()
    assert len(states.lend(context(4)).state) == 0
    assert list(states.now()) == [3]


def test_what_was_known_before_is_lent_first() -> None:
    states = ClientStates({3: to_tree(remembered())})
    assert states.lend(context(3)).state == remembered()
