"""Trains one round: chooses and instructs the participants, gets updates, and aggregates them.

The round is the same for a simulation and a deployment, and for the strategies of this project and
of Flower. The server loop (`federation.loop`) evaluates the model of a round and reports the round.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from fl_vitlora.config import TrainingConfig
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.exchange import Exchange
from fl_vitlora.federation.failures import diverged, first_reasons
from fl_vitlora.federation.global_model import GlobalModel, join
from fl_vitlora.federation.hooks import RoundHooks, RoundReport
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.federation.observer import Sight
from fl_vitlora.federation.server_method import (
    after_round,
    check_means,
    check_not_clipped,
    with_method,
)
from fl_vitlora.finetuning.method import Method
from fl_vitlora.lowrank import relative_error
from fl_vitlora.population.sampling import sample
from fl_vitlora.state import is_finite
from fl_vitlora.strategy import Update
from fl_vitlora.training.local import scheduled_rate


class Wire(Protocol):
    """An object that sends the instructions of a round to clients, and receives their updates."""

    def exchange(self, server_round: int, instructions: Sequence[Instruction]) -> Exchange:
        """Sends the instructions of a round, and returns the clients' updates and failures."""
        ...


class RoundFailedError(RuntimeError):
    """An error that ends the run, because a round has too few usable updates or no usable model."""


class DivergedError(RoundFailedError):
    """An error that ends the run, because the numbers of the model are not finite or too large.

    The same settings would lead to the same numbers again.
    """


@dataclass(frozen=True, kw_only=True)
class TrainingRound:
    """The objects and settings that train the global model, which are the same in every round.

    Attributes:
        transport: The object that sends and receives messages. All clients must be connected to it
            before the loop starts.
        aggregator: The aggregator, which runs the aggregation strategy.
        method: The fine-tuning method.
        clients: The numbers of all clients.
        rounds: The number of rounds to run.
        fraction: The share of all clients that take part in a round; at least one client takes
            part.
        quorum: The smallest number of usable updates with which a round succeeds. Each client in a
            secure sum counts as one update.
        seed: The seed of the run.
        training: The settings of local training. Only the schedule of the learning rate is used.
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

    def run(self, server_round: int, model: GlobalModel) -> tuple[GlobalModel, RoundReport]:
        """Runs the training of a round.

        Args:
            server_round: The number of the round, from 1.
            model: The global model before the round.

        Returns:
            A pair: the global model after the round, and a report without accuracy and loss.

        Raises:
            RoundFailedError: If the round has fewer updates than the quorum, or no usable model.
        """
        begin = time.perf_counter()
        instructions = self._instruct(server_round, model)
        exchange = self._exchange(server_round, model, instructions)
        updates, failures = exchange.updates, exchange.failures
        released = self.hooks.release(server_round, updates, len(instructions))
        aggregated = self.aggregator.aggregate(server_round, model, released, failures)
        check_means(self.method, model, released, aggregated)
        train_loss = _mean_loss(updates)
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
            raise DivergedError(
                f"round {server_round}: the aggregated model contains NaN or infinity"
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

    def _exchange(
        self, server_round: int, model: GlobalModel, instructions: Sequence[Instruction]
    ) -> Exchange:
        """Sends instructions, receives updates, shows the updates to the hooks, and checks them.

        Raises:
            RoundFailedError: If the round has fewer updates than the quorum.
        """
        exchange = self.transport.exchange(server_round, instructions)
        self.hooks.note(exchange.failures)
        self.hooks.look(Sight(round=server_round, model=model.tensors, updates=exchange.updates))
        self._check_quorum(server_round, exchange, len(instructions))
        check_not_clipped(self.method, instructions[0].plan.frozen, exchange.clipped)
        return exchange

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
        return relative_error(before.tensors, updates, aggregated.tensors, merged)

    def _instruct(self, server_round: int, model: GlobalModel) -> list[Instruction]:
        """Returns the instructions of a round, one for each participant."""
        drawn = sample(self.clients, self.fraction, self.seed, server_round)
        participants = self.aggregator.select(server_round, drawn, self.clients)
        rate = scheduled_rate(self.training, server_round, self.rounds)
        config = {SERVER_ROUND: server_round, LEARNING_RATE: rate}
        asked = self.aggregator.instruct(server_round, model, participants, config)
        return with_method(self.method, server_round, asked)

    def _check_quorum(self, server_round: int, exchange: Exchange, asked: int) -> None:
        """Ends the run if a round has too few usable updates.

        Raises:
            RoundFailedError: If there are too few updates. The message states the reasons of the
                first failures.
        """
        usable = sum(update.members for update in exchange.updates)
        if usable < self.quorum:
            kind = DivergedError if diverged(exchange.failures) else RoundFailedError
            raise kind(
                f"round {server_round}: {usable} of {asked} clients sent a usable update, fewer "
                f"than {self.quorum} (min_clients){first_reasons(exchange.failures)}"
            )


def _mean_loss(updates: Sequence[Update]) -> float:
    """Returns the mean training loss of the clients, weighted by their images."""
    images = sum(update.samples for update in updates)
    return sum(update.loss * update.samples for update in updates) / max(1, images)
