"""What a run does around the rounds of the server loop: the callbacks of `federation.loop`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.observer import Sight
from fl_vitlora.strategy import Update

Metrics = dict[str, int | float | list[int] | list[float]]  # by their names


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """What happened in one round.

    Attributes:
        round: The number of the round, from 1.
        accuracy: The accuracy of the new global model on the test images, in [0, 1].
        loss: The mean cross-entropy of the new global model on the test images.
        train_loss: The mean training loss of the participants, weighted by images.
        participants: The clients whose updates were aggregated.
        failures: The clients that sent no usable update, and why.
        taken_apart: The participants that trained alone after workers were lost.
        aggregation_error: The error of the low-rank products, as a share of the round's movement;
            None where there is nothing to compare (`lowrank.relative_error`).
        moved: True if the strategy made another model than the one that the round began with.
        metrics: What a strategy of Flower made of the clients' training metrics.
        clipped: The number of scalars beyond the range of a secure sum; None where updates are not
            summed.
        seconds: Wall time from the beginning of this round to that of the next. Where models are
            measured beside the next round, it contains the measurement of the model before.
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


def _write_nothing() -> None:
    """Writes nothing."""


class RoundHooks(Protocol):
    """The callbacks of the server loop; only `evaluate` and `report` must be written.

    The loop calls them in this order: `pauses`, `affords`, `note`, `look`, `release`, `keep`,
    `evaluate`, `report`.
    """

    beside: bool = False
    """True if a model may be measured in another thread while the next round goes on."""

    def evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float]:
        """Returns accuracy and loss of the global model of a round."""
        ...

    def report(self, report: RoundReport, model: GlobalModel) -> None:
        """Is shown every round as it ends, and its model."""
        ...

    def pauses(self) -> bool:
        """Returns True if the run is to pause before the next round."""
        return False

    def affords(self, server_round: int) -> bool:
        """Returns True if the round may begin; otherwise the run ends before it."""
        del server_round
        return True

    def note(self, failures: Sequence[Failure]) -> None:
        """Is shown the failures of a round at once; the round may fail of them."""
        del failures

    def look(self, sight: Sight) -> None:
        """Is shown what the server sees in this round."""
        del sight

    def release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        """Makes what the strategy is given of a round's updates.

        Args:
            server_round: The number of the round, from 1.
            updates: The usable updates.
            cohort: The number of clients that were asked for one.
        """
        del server_round, cohort
        return updates

    def keep(self, server_round: int, model: GlobalModel) -> Callable[[], None]:
        """Takes hold of the state after a round, in which nothing happens meanwhile.

        Returns:
            What writes the state down; it is called once the round is reported.
        """
        del server_round, model
        return _write_nothing
