"""The server loop, which trains, evaluates, reports and saves the global model in every round.

The loop is the same for a simulation and a deployment, and for the strategies of this project and
of Flower. The module `federation.training_round` does the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NoReturn

from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundHooks, RoundReport
from fl_vitlora.federation.training_round import TrainingRound
from fl_vitlora.strategy import RoundResult


class PausedError(Exception):
    """An error that ends the run when the user asks for a pause; the message states the round."""


@dataclass(frozen=True)
class Federation:
    """The server loop over all rounds.

    Attributes:
        each_round: The objects and settings that train the global model in each round.
    """

    each_round: TrainingRound

    @property
    def hooks(self) -> RoundHooks:
        """Returns the callbacks of the run."""
        return self.each_round.hooks

    def run(
        self, model: GlobalModel, done: int = 0, last: RoundResult | None = None
    ) -> GlobalModel:
        """Runs all rounds, unless the byte budget, the strategy or the user ends the run earlier.

        A run can also end early because the accuracy did not rise (`RoundHooks.gives_up`).

        Args:
            model: The initial model, or the model of a checkpoint.
            done: The number of rounds that were run before; 0 for the initial model.
            last: The result of round `done`; None before the first round, or if the model of
                round `done` was not evaluated.

        Returns:
            The final model.

        Raises:
            RoundFailedError: If a round has fewer updates than the quorum, or no usable model.
            PausedError: If the user asked for a pause. The state is saved before the error is
                raised.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="measuring") as other:
            measured: Future[RoundResult | None] | None = None
            may_stop = self.each_round.aggregator.may_stop or self.hooks.may_give_up
            for server_round in range(done + 1, self.each_round.rounds + 1):
                if may_stop and measured is not None:
                    last = measured.result()
                if last is not None and self._stops(server_round - 1, last, model):
                    break
                if self.hooks.pauses():
                    self._pause(server_round - 1, model, measured)
                if not self.hooks.affords(server_round):
                    break
                model, unmeasured = self.each_round.run(server_round, model)
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
        """Returns True if the run ends early after round `done`; saves the state in this case."""
        aggregator = self.each_round.aggregator
        if aggregator.may_stop and aggregator.should_stop(done, last):
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
        raise PausedError(f"after round {done} of {self.each_round.rounds}")

    def _tell(
        self, unmeasured: RoundReport, model: GlobalModel, write: Callable[[], None] | None = None
    ) -> RoundResult | None:
        """Evaluates the model of a round, reports the results, and saves the state.

        Args:
            unmeasured: The report of the round, without accuracy and loss.
            model: The model after the round.
            write: A function that saves a copy of the state; None if there is no copy yet.

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
