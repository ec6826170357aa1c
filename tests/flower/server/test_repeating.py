"""An update that is asked for twice in a round is, bit by bit, the one that was asked for first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict

import strategies
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.federation.aggregator import OwnAggregator
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.strategy import Strategy, Update
from tests.flower.client.test_context_state import Clients, equal
from tests.flower.conftest import LocalGrid, both

pytestmark = pytest.mark.slow

Answer = Callable[[Message], Message]
CODED: dict[str, Any] = {"compression__uplink": "int4", "compression__downlink": "int4"}
RARELY: dict[str, Any] = {"compression__uplink__head": "every(2)+int4"}
LOCAL: dict[str, Any] = {"finetuning__patch_embedding": "local"}


def refused(grid: LocalGrid, answer: Answer, message: Message) -> Message:
    """The client has done its work and remembers it; its reply is none."""
    answer(message)
    return Message(RecordDict(), reply_to=message)


def raised(grid: LocalGrid, answer: Answer, message: Message) -> Message:
    """The app raised, at the end of its work, and a worker of a simulation forgets what it did."""
    before = copy.deepcopy(grid.kept)
    answer(message)
    grid.kept[:] = before
    return Message(Error(2, "out of memory"), reply_to=message)


def raised_late(grid: LocalGrid, answer: Answer, message: Message) -> Message:
    """Fails as in a deployment: the context keeps what the app did before it raised an error."""
    answer(message)
    return Message(Error(2, "out of memory"), reply_to=message)


class Rounds:
    """Rounds of a strategy, with the real client app, in which the first client fails at first."""

    def __init__(self, folder: Path, name: str, failing: Any = None, **given: Any) -> None:
        strategy = strategies.load(name, {})
        assert isinstance(strategy, Strategy)
        self.clients = Clients(folder, strategy, **given)
        self.aggregator = OwnAggregator(strategy)
        self.model = GlobalModel(tensors=self.clients.initial)
        self._answer, self._failing = self.clients.grid.answer, failing
        self._failed: set[tuple[int, str]] = set()
        self.clients.grid.answer = self._answer_or_fail  # type: ignore[method-assign]
        self._round = 0

    def _answer_or_fail(self, message: Message) -> Message:
        attempt = (self._round, message.metadata.message_type)
        first = message.metadata.dst_node_id == 100 and attempt not in self._failed
        if self._failing is None or not first:
            return self._answer(message)
        self._failed.add(attempt)
        reply: Message = self._failing(self.clients.grid, self._answer, message)
        return reply

    def train(self, *participants: int) -> tuple[list[Update], list[Failure]]:
        """Plays the clients' part of a round."""
        self._round += 1
        config = {SERVER_ROUND: self._round, LEARNING_RATE: 1e-2}
        asked = self.aggregator.instruct(self._round, self.model, participants, config)
        return both(self.clients.transport.exchange(self._round, asked))

    def play(self, *participants: int) -> tuple[list[Update], Any]:
        """Plays a round, and has its model measured by the clients."""
        updates, failures = self.train(*participants)
        assert failures == []
        self.model = self.aggregator.aggregate(self._round, self.model, updates, failures)
        measured = self.clients.transport.measure(self._round, self.model, [RIGHT_KEY])
        assert self._failing is None or {attempt[0] for attempt in self._failed} == set(
            range(1, self._round + 1)
        )
        return updates, measured


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("fedavg", {}),
        ("fedavg", CODED),
        ("fedavg", RARELY),
        ("fedavg", LOCAL),
        ("fedsa_lora", {}),
        ("scaffold", {}),
        ("scaffold", CODED),
        ("rolora", {}),
        ("ffa_lora", {}),
        ("flora", {}),
        ("fedex_lora", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "exact",
)
@pytest.mark.parametrize("failing", [refused, raised, raised_late])
def test_a_repeated_update_is_the_first_one(
    name: str, given: dict[str, Any], failing: Any, tmp_path: Path
):
    """In every round the first client fails at first; it sits out the third."""
    troubled = Rounds(tmp_path / "troubled", name, failing, **given)
    smooth = Rounds(tmp_path / "smooth", name, **given)
    for participants in ((0, 1), (0,), (1,), (0, 1)):
        found, measured = troubled.play(*participants)
        expected, measured_there = smooth.play(*participants)
        for one, other in zip(found, expected, strict=True):
            assert (one.client, one.loss, one.steps) == (other.client, other.loss, other.steps)
            assert equal(one.delta, other.delta)
            assert equal(one.report, other.report)
        assert measured == measured_there
        assert equal(troubled.model.stored(), smooth.model.stored())


SECURE: dict[str, Any] = {"privacy__secure_aggregation": True}


def masked(folder: Path, failing: Any = None) -> Rounds:
    return Rounds(
        folder, "fedavg", failing, sums=SecureAggregator(limit=4.0, equal=False), **SECURE
    )


def trainings(rounds: Rounds) -> int:
    """Counts the messages that asked the first client to train."""
    return sum(
        message.metadata.message_type == "train" and message.metadata.dst_node_id == 100
        for message in rounds.clients.grid.passed
    )


def test_in_a_secure_sum_who_raised_is_asked_again_and_is_in_it(tmp_path: Path):
    troubled, smooth = masked(tmp_path / "troubled", raised), masked(tmp_path / "smooth")
    for _ in range(2):
        (found,), _ = troubled.play(0, 1, 2)
        (expected,), _ = smooth.play(0, 1, 2)
        assert (found.members, trainings(smooth)) == (3, trainings(troubled) / 2)
        assert equal(found.delta, expected.delta)


def test_in_a_secure_sum_who_sent_anything_is_not_asked_again(tmp_path: Path):
    """It may have been a masked vector, and a second one under the same mask would betray it."""
    rounds = masked(tmp_path, refused)
    (mean,), (failure,) = rounds.train(0, 1, 2)
    assert (mean.members, failure.client, trainings(rounds)) == (2, 0, 1)


def test_a_client_masks_no_second_vector_whatever_the_server_asks(tmp_path: Path):
    """Its app raised after it had masked one, and its context kept that it had."""
    rounds = masked(tmp_path, raised_late)
    (mean,), (failure,) = rounds.train(0, 1, 2)
    assert (mean.members, failure.client, failure.reason) == (2, 0, "out of memory")
    assert "this client has already masked a vector for round 1" in failure.trace
