"""The callbacks of the server loop (`federation.loop`), by which a run adds its own actions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.observer import Sight
from fl_vitlora.strategy import Update

# By their names. Strategies of Flower have numbers and lists. Those of this project have numbers,
# or numbers by client; None stands for a number that is not finite.
Metrics = dict[str, int | float | list[int] | list[float] | dict[str, float | None] | None]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What happened in one round.

    Attributes:
        round: The number of the round, from 1.
        accuracy: The accuracy of the new global model on the test images, in [0, 1].
        loss: The mean cross-entropy of the new global model on the test images.
        train_loss: The mean training loss of the participants, weighted by images.
        participants: The clients whose updates were aggregated.
        frozen: The endings of the names of tensors that rested.
        failures: The clients that sent no usable update, and why.
        taken_apart: The participants that trained alone after workers were lost.
        aggregation_error: The error of the low-rank products, as a share of the round's movement;
            None if there is nothing to compare (`lowrank.relative_error`).
        moved: True if the round changed the model.
        metrics: The strategy's own numbers of the round.
        clipped: The number of scalars beyond the range of a secure sum; None without secure sums.
        seconds: The wall time from the beginning of this round to that of the next. If models are
            measured beside the next round, it contains the measurement of the previous model.
    """

    round: int
    accuracy: float
    loss: float
    train_loss: float
    participants: tuple[int, ...]
    frozen: tuple[str, ...] = ()
    failures: tuple[Failure, ...]
    taken_apart: tuple[int, ...]
    aggregation_error: float | None
    moved: bool
    metrics: Metrics = field(default_factory=dict)
    clipped: int | None = None
    seconds: float


def write_nothing() -> None:
    """Writes nothing."""


class RoundHooks(Protocol):
    """The callbacks of the server loop; only `evaluate` and `report` must be written.

    The loop calls them in this order: `pauses`, `affords`, `note`, `look`, `release`, `keep`,
    `evaluate`, `report`; and `stop` where the strategy ends the run.
    """

    beside: bool = False
    """True if a model may be measured in another thread while the next round goes on."""

    def evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float]:
        """Returns accuracy and loss of the global model of a round."""
        ...

    def report(self, report: RoundReport, model: GlobalModel) -> None:
        """Receives the report of a round and its model when the round ends."""
        ...

    def pauses(self) -> bool:
        """Returns True if the run is to pause before the next round."""
        return False

    def affords(self, server_round: int) -> bool:
        """Returns True if the round may begin; otherwise the run ends before it."""
        del server_round
        return True

    def stop(self, server_round: int) -> None:
        """Receives the last round of a run that the strategy ends; `keep` is called after it."""
        del server_round

    def note(self, failures: Sequence[Failure]) -> None:
        """Receives the failures of a round at once; they may make the round fail."""
        del failures

    def look(self, sight: Sight) -> None:
        """Receives what the server sees in this round."""
        del sight

    def release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        """Returns the updates that the strategy gets, made from a round's updates.

        Args:
            server_round: The number of the round, from 1.
            updates: The usable updates.
            cohort: The number of clients that were asked for one.
        """
        del server_round, cohort
        return updates

    def keep(self, server_round: int, model: GlobalModel) -> Callable[[], None]:
        """Captures the state after a round, while nothing else changes it.

        Returns:
            A function that saves the state; the loop calls it once the round is reported.
        """
        del server_round, model
        return write_nothing
