"""The server loop: choose participants, instruct, exchange, aggregate, evaluate, report.

The loop is the same for a simulation and a deployment, and for the strategies of this project and
of Flower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

from fl_vitlora.config import TrainingConfig
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.exchange import Exchange
from fl_vitlora.federation.failures import first_reasons
from fl_vitlora.federation.global_model import GlobalModel, join
from fl_vitlora.federation.hooks import RoundHooks, RoundReport
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.federation.observer import Sight
from fl_vitlora.federation.server_method import after_round, check_not_clipped, with_rests
from fl_vitlora.finetuning.method import Method
from fl_vitlora.lowrank import relative_error
from fl_vitlora.population.sampling import sample
from fl_vitlora.state import is_finite
from fl_vitlora.strategy import RoundResult, Update
from fl_vitlora.training.local import scheduled_rate


class Wire(Protocol):
    """Sends the instructions of a round to clients, and receives their updates."""

    def exchange(self, server_round: int, instructions: Sequence[Instruction]) -> Exchange:
        """Sends the instructions of a round, and returns the clients' updates and failures."""
        ...


class PausedError(Exception):
    """An error that pauses the run on the user's request; the message says after which round."""


class RoundFailedError(RuntimeError):
    """An error that ends the run: too few usable updates in a round, or an invalid model."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """The objects and settings of the server loop that do not change from round to round.

    Attributes:
        transport: Sends and receives messages. When the loop starts, all clients are connected.
        aggregator: The aggregator, which runs the aggregation strategy.
        method: The fine-tuning method.
        clients: The numbers of all clients.
        rounds: The number of rounds to run.
        fraction: The share of all clients that take part in a round; at least one client does.
        quorum: The smallest number of usable updates with which a round succeeds. Each client in a
            secure sum counts as one update.
        seed: The seed of the run.
        training: The settings of local training; the loop uses only the learning rate schedule.
        hooks: The callbacks of the run, which evaluate models, report rounds and save the state.
    """

    transport: Wire
    aggregator: Aggregator
    method: Method
    clients: Sequence[int]
    rounds: int
    fraction: float
    quorum: int = 1
    seed: int
    training: TrainingConfig
    hooks: RoundHooks

    def run(
        self, model: GlobalModel, done: int = 0, last: RoundResult | None = None
    ) -> GlobalModel:
        """Runs all rounds, unless the byte budget, the strategy or the user ends the run earlier.

        A run can also end early because the accuracy did not rise (`RoundHooks.gives_up`).

        Args:
            model: The initial model, or the model of a checkpoint.
            done: The number of rounds that were run before; 0 for the initial model.
            last: The result of round `done`; None before the first round, or if the model of
                that round was not evaluated.

        Returns:
            The final model.

        Raises:
            RoundFailedError: If a round has fewer updates than the quorum, or no usable model.
            PausedError: If the user asked for a pause; the state is stored before the error is
                raised.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="measuring") as other:
            measured: Future[RoundResult | None] | None = None
            may_stop = self.aggregator.may_stop or self.hooks.may_give_up
            for server_round in range(done + 1, self.rounds + 1):
                if may_stop and measured is not None:
                    last = measured.result()
                if last is not None and self._stops(server_round - 1, last, model):
                    break
                if self.hooks.pauses():
                    self._pause(server_round - 1, model, measured)
                if not self.hooks.affords(server_round):
                    break
                model, unmeasured = self._round(server_round, model)
                if measured is not None:
                    measured.result()
                if self.hooks.beside:
                    write = self.hooks.keep(server_round, model)
                    measured = other.submit(self._tell, unmeasured, model, write)
                else:
                    last = self._tell(unmeasured, model)
            if measured is not None:
                measured.result()
        return model

    def _stops(self, done: int, last: RoundResult, model: GlobalModel) -> bool:
        """Returns True if the run ends early after round `done`; then the state is saved."""
        if self.aggregator.may_stop and self.aggregator.should_stop(done, last):
            reason = "strategy"
        elif self.hooks.may_give_up and self.hooks.gives_up(done):
            reason = "patience"
        else:
            return False
        self.hooks.stop(done, reason)
        self.hooks.keep(done, model)()
        return True

    def _pause(
        self, done: int, model: GlobalModel, measured: Future[RoundResult | None] | None
    ) -> NoReturn:
        """Waits until the last model is evaluated, saves the state, and ends the run."""
        if measured is not None:
            measured.result()
        if done:
            self.hooks.keep(done, model)()
        raise PausedError(f"after round {done} of {self.rounds}")

    def _tell(
        self, unmeasured: RoundReport, model: GlobalModel, write: Callable[[], None] | None = None
    ) -> RoundResult | None:
        """Evaluates the model of a round, reports the results, and saves the state.

        Args:
            unmeasured: The report of the round, without accuracy and loss.
            model: The model after the round.
            write: A function that saves the state; None if the state was not copied yet.

        Returns:
            The result of the round; None if the model was not evaluated.
        """
        begin = time.perf_counter()
        accuracy, loss = self.hooks.evaluate(unmeasured.round, model) or (None, None)
        waited = 0.0 if self.hooks.beside else time.perf_counter() - begin
        seconds = unmeasured.seconds + waited
        self.hooks.report(replace(unmeasured, accuracy=accuracy, loss=loss, seconds=seconds), model)
        (write or self.hooks.keep(unmeasured.round, model))()
        if accuracy is None or loss is None:
            return None
        return RoundResult(
            accuracy=accuracy,
            loss=loss,
            train_loss=unmeasured.train_loss,
            participants=unmeasured.participants,
        )

    def _round(self, server_round: int, model: GlobalModel) -> tuple[GlobalModel, RoundReport]:
        """Runs a round, and returns its model and a report without accuracy and loss."""
        begin = time.perf_counter()
        instructions = self._instruct(server_round, model)
        exchange = self.transport.exchange(server_round, instructions)
        updates, failures = exchange.updates, exchange.failures
        self.hooks.note(failures)
        self.hooks.look(Sight(round=server_round, model=model.tensors, updates=updates))
        self._check_quorum(server_round, exchange, len(instructions))
        check_not_clipped(self.method, instructions[0].plan.frozen, exchange.clipped)
        released = self.hooks.release(server_round, updates, len(instructions))
        aggregated = self.aggregator.aggregate(server_round, model, released, failures)
        images = sum(update.samples for update in updates)
        train_loss = sum(update.loss * update.samples for update in updates) / max(1, images)
        new = after_round(
            self.method,
            model,
            aggregated,
            server_round,
            self.rounds,
            loss=train_loss,
            seed=self.seed,
        )
        if not is_finite(new.stored()):
            raise RoundFailedError(
                f"round {server_round}: the aggregated model holds NaN or infinity"
            )
        failed = {failure.client for failure in failures}
        answered = tuple(i.client for i in instructions if i.client not in failed)
        return new, RoundReport(
            round=server_round,
            train_loss=train_loss,
            participants=answered,
            frozen=instructions[0].plan.frozen,
            failures=failures,
            taken_apart=exchange.taken_apart,
            aggregation_error=self._gap(model, released, aggregated, new),
            moved=new.differs_from(model),
            metrics=self.aggregator.metrics(),
            clipped=exchange.clipped,
            seconds=time.perf_counter() - begin,
        )

    def _gap(
        self,
        before: GlobalModel,
        updates: Sequence[Update],
        aggregated: GlobalModel,
        new: GlobalModel,
    ) -> float | None:
        """Returns the aggregation gap of a round; see `RoundReport.aggregation_error`.

        Changes that the fine-tuning method makes after the aggregation do not count as a gap.
        """
        gap = self.hooks.gap(before.tensors, updates, aggregated.tensors)
        if gap is not None:
            return gap
        merged = join(new.merges_since(before.rounds) or ())
        return relative_error(before.tensors, updates, new.tensors, merged)

    def _instruct(self, server_round: int, model: GlobalModel) -> list[Instruction]:
        """Returns the instructions of a round, one for each participant."""
        drawn = sample(self.clients, self.fraction, self.seed, server_round)
        participants = self.aggregator.select(server_round, drawn, self.clients)
        rate = scheduled_rate(self.training, server_round, self.rounds)
        config = {SERVER_ROUND: server_round, LEARNING_RATE: rate}
        asked = self.aggregator.instruct(server_round, model, participants, config)
        return with_rests(self.method, server_round, asked)

    def _check_quorum(self, server_round: int, exchange: Exchange, asked: int) -> None:
        """Ends the run if a round has too few usable updates.

        Raises:
            RoundFailedError: If updates are too few; the message gives the reasons of some clients.
        """
        usable = sum(update.members for update in exchange.updates)
        if usable < self.quorum:
            raise RoundFailedError(
                f"round {server_round}: {usable} of {asked} clients sent a usable update, fewer "
                f"than {self.quorum} (min_clients){first_reasons(exchange.failures)}"
            )
