"""The server loop: choose participants, instruct, exchange, aggregate, evaluate, report.

It is the same for a simulation and a deployment, for this project's strategies and for Flower's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NoReturn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.federation.failures import Failure, first_reasons
from fl_vitlora.federation.global_model import GlobalModel, join
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.flower.strategies.aggregators import Aggregator
from fl_vitlora.flower.strategies.flower_aggregator import Metrics
from fl_vitlora.lowrank import relative_error
from fl_vitlora.population.sampling import sample
from fl_vitlora.state import is_finite
from fl_vitlora.strategy import Update
from fl_vitlora.training.local import scheduled_rate


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What happened in one round.

    Attributes:
        round: From 1.
        accuracy: Of the new global model on the test shard, in [0, 1].
        loss: Its mean cross-entropy there.
        train_loss: Mean training loss of the participants, weighted by images.
        participants: Clients whose updates were aggregated.
        failures: Clients that sent none, and why.
        taken_apart: Participants that trained alone after workers were lost (`Transport`).
        aggregation_error: Of the low-rank products, as a share of the round's movement; None
            where there is nothing to compare (`lowrank.relative_error`).
        moved: Whether the strategy made another model than the one that the round began with.
        metrics: What a strategy of Flower made of the clients' training metrics.
        clipped: Scalars beyond the range of a secure sum; None where updates are not summed.
        seconds: Wall time from its beginning to that of the next; where models are measured beside
            the next round, that of the model before is in it.
    """

    round: int
    accuracy: float
    loss: float
    train_loss: float
    participants: tuple[int, ...]
    failures: tuple[Failure, ...]
    taken_apart: tuple[int, ...]
    aggregation_error: float | None
    moved: bool
    metrics: Metrics = field(default_factory=dict)
    clipped: int | None = None
    seconds: float


class PausedError(Exception):
    """The run was told to pause; its message says after how many rounds it did."""


class RoundFailedError(RuntimeError):
    """A round in which too few clients sent a usable update, or the result is not a number."""


def _nothing() -> None:
    """Writes nothing."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """Everything that does not change from round to round.

    Attributes:
        transport: The wire, with all clients greeted.
        aggregator: The strategy.
        clients: Numbers of all clients.
        rounds: How many to run.
        fraction: Share of the clients in a round, at least one.
        quorum: Updates without which a round fails; in a secure sum each member counts.
        seed: The run's seed.
        training: For the schedule of the learning rate.
        evaluate: Measures accuracy and loss of the global model of a round.
        observe: Is shown every round as it ends, and its model.
        note: Is shown a round's failures as they are known; the round may fail of them.
        release: Makes of a round's updates, and of how many were asked for one, what the strategy
            is given; as they are, if not said otherwise.
        affords: Tells whether a round may begin; where it may not, the run ends before it.
        keep: Takes hold of the state after a round, in which nothing happens meanwhile; what it
            returns writes it down once the round is observed.
        pauses: Tells whether to pause before the next round.
        beside: Whether a model may be measured, in another thread, while the next round goes on.
    """

    transport: Transport
    aggregator: Aggregator
    clients: Sequence[int]
    rounds: int
    fraction: float
    quorum: int = 1
    seed: int
    training: TrainingConfig
    evaluate: Callable[[int, GlobalModel], tuple[float, float]]
    observe: Callable[[RoundReport, GlobalModel], None]
    note: Callable[[Sequence[Failure]], None] = lambda failures: None
    release: Callable[[int, Sequence[Update], int], Sequence[Update]] = (
        lambda server_round, updates, cohort: updates
    )
    affords: Callable[[int], bool] = lambda server_round: True
    keep: Callable[[int, GlobalModel], Callable[[], None]] = lambda server_round, model: _nothing
    pauses: Callable[[], bool] = lambda: False
    beside: bool = False

    def run(self, model: GlobalModel, done: int = 0) -> GlobalModel:
        """Runs all rounds that can be afforded.

        Args:
            model: The initial one, or that of a checkpoint.
            done: How many rounds made it.

        Returns:
            The final one.

        Raises:
            RoundFailedError: When a round has fewer updates than the quorum, or yields no model.
            PausedError: When told to pause; the state is kept then.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="measuring") as other:
            told: Future[None] | None = None
            for server_round in range(done + 1, self.rounds + 1):
                if self.pauses():
                    self._pause(server_round - 1, model, told)
                if not self.affords(server_round):
                    break
                model, unmeasured = self._round(server_round, model)
                if told is not None:
                    told.result()
                if self.beside:
                    write = self.keep(server_round, model)
                    told = other.submit(self._tell, unmeasured, model, write)
                else:
                    self._tell(unmeasured, model)
            if told is not None:
                told.result()
        return model

    def _pause(self, done: int, model: GlobalModel, told: Future[None] | None) -> NoReturn:
        """Keeps the state after the last round, once that is measured, and ends the run there."""
        if told is not None:
            told.result()
        if done:
            self.keep(done, model)()
        raise PausedError(f"after round {done} of {self.rounds}")

    def _tell(
        self, unmeasured: RoundReport, model: GlobalModel, write: Callable[[], None] | None = None
    ) -> None:
        """Measures the model of a round, reports, and writes down what was kept, or is now."""
        begin = time.perf_counter()
        accuracy, loss = self.evaluate(unmeasured.round, model)
        waited = 0.0 if self.beside else time.perf_counter() - begin
        seconds = unmeasured.seconds + waited
        self.observe(replace(unmeasured, accuracy=accuracy, loss=loss, seconds=seconds), model)
        (write or self.keep(unmeasured.round, model))()

    def _round(self, server_round: int, model: GlobalModel) -> tuple[GlobalModel, RoundReport]:
        """Makes the model of a round; its report waits for accuracy and loss."""
        begin = time.perf_counter()
        participants = sample(self.clients, self.fraction, self.seed, server_round)
        rate = scheduled_rate(self.training, server_round, self.rounds)
        config = {SERVER_ROUND: server_round, LEARNING_RATE: rate}
        instructions = self.aggregator.instruct(server_round, model, participants, config)
        exchange = self.transport.exchange(server_round, instructions)
        updates, failures = exchange.updates, exchange.failures
        self.note(failures)
        usable = sum(update.members for update in updates)
        if usable < self.quorum:
            raise RoundFailedError(
                f"round {server_round}: {usable} of {len(instructions)} clients sent a usable "
                f"update, fewer than {self.quorum} (min_clients){first_reasons(failures)}"
            )
        released = self.release(server_round, updates, len(instructions))
        new = self.aggregator.aggregate(server_round, model, released, failures)
        if not is_finite(new.stored()):
            raise RoundFailedError(
                f"round {server_round}: the aggregated model holds NaN or infinity"
            )
        images = sum(update.samples for update in updates)
        failed = {failure.client for failure in failures}
        answered = tuple(i.client for i in instructions if i.client not in failed)
        return new, RoundReport(
            round=server_round,
            accuracy=math.nan,
            loss=math.nan,
            train_loss=sum(update.loss * update.samples for update in updates) / max(1, images),
            participants=answered,
            failures=failures,
            taken_apart=exchange.taken_apart,
            aggregation_error=relative_error(
                model.tensors, released, new.tensors, join(new.merges_since(model.rounds) or ())
            ),
            moved=new.differs_from(model),
            metrics=self.aggregator.metrics(),
            clipped=exchange.clipped,
            seconds=time.perf_counter() - begin,
        )
