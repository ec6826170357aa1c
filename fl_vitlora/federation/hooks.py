"""The callbacks (hooks) with which a run adds its own actions to the server loop.

The server loop is in the module `federation.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.observer import Sight
from fl_vitlora.state import State
from fl_vitlora.strategy import Update

# A mapping from the names of a strategy's metrics to their values. For strategies of Flower, the
# values are numbers and lists. For strategies of this project, the values are numbers, or mappings
# from clients to numbers; None replaces a number that is not finite.
Metrics = dict[str, int | float | list[int] | list[float] | dict[str, float | None] | None]


@dataclass(frozen=True, kw_only=True)
class RoundReport:
    """The results of one round.

    Attributes:
        round: The number of the round, from 1.
        accuracy: The accuracy of the new global model in [0, 1]; None if the model was not
            evaluated. If the run has validation images, this is the accuracy on the validation
            images, otherwise on the test images.
        loss: The mean cross-entropy of the new global model on the images of `accuracy`; None if
            the model was not evaluated.
        train_loss: The mean training loss of the participants, weighted by images.
        participants: The clients whose updates were aggregated.
        frozen: The endings of the names of tensors that were frozen in this round.
        failures: The clients that sent no usable update, and the reasons.
        taken_apart: The participants that were trained one by one because the workers failed on the
            batch of several clients.
        aggregation_error: The distance of the new weights from the average of the clients' weights,
            as a share of the change of this average in the round; None if the method has no adapted
            weights to compare. The module `aggregation_gap` computes this error, and for LoRA the
            module `lowrank`.
        moved: True if the round changed the model.
        metrics: The numbers that the strategy computed in this round.
        clipped: The number of scalars that were clipped to the range of a secure sum; None without
            secure aggregation.
        seconds: The time in seconds from the beginning of this round to the beginning of the next
            round. If models are evaluated during the next round, `seconds` includes the evaluation
            of the previous model.
    """

    round: int
    accuracy: float | None = None
    loss: float | None = None
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
    """Does nothing.

    By default, `RoundHooks.keep` returns this function, so that no state is saved.
    """


class RoundHooks(Protocol):
    """The callbacks of the server loop. A class must define only `evaluate` and `report`.

    The loop calls the callbacks in this order: `pauses`, `affords`, `note`, `look`, `release`,
    `gap`, `keep`, `evaluate`, `report`. If the strategy or `gives_up` ends the run, the loop calls
    `stop`.
    """

    beside: bool = False
    """True if a model may be evaluated in another thread while the next round runs."""

    may_give_up: bool = False
    """True if `gives_up` can return True; each model is then evaluated before the next round."""

    def evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float] | None:
        """Returns the accuracy and the loss of a round's model; None if it is not evaluated."""
        ...

    def report(self, report: RoundReport, model: GlobalModel) -> None:
        """Receives the report of a round and the model of the round, when the round ends."""
        ...

    def pauses(self) -> bool:
        """Returns True if the run must pause before the next round."""
        return False

    def affords(self, server_round: int) -> bool:
        """Returns True if the byte budget allows the round; otherwise the run ends."""
        del server_round
        return True

    def gives_up(self, server_round: int) -> bool:
        """Returns True if the run must end because the accuracy has not risen for many rounds.

        The loop calls this method only after a round whose model was evaluated.
        """
        del server_round
        return False

    def stop(self, server_round: int, reason: str) -> None:
        """Receives the number of the last round if the run ends early; the loop then calls `keep`.

        Args:
            server_round: The number of the last round.
            reason: "strategy" if the strategy ends the run; "patience" if `gives_up` returned True.
        """
        del server_round, reason

    def note(self, failures: Sequence[Failure]) -> None:
        """Receives the failures of a round before the loop checks for too few updates."""
        del failures

    def look(self, sight: Sight) -> None:
        """Receives the data that the server sees in this round."""
        del sight

    def release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        """Returns what the strategy gets for the updates, such as their mean with noise.

        Args:
            server_round: The number of the round, from 1.
            updates: The usable updates.
            cohort: The number of clients that were asked for an update.
        """
        del server_round, cohort
        return updates

    def gap(self, before: State, updates: Sequence[Update], new: State) -> float | None:
        """Returns the aggregation gap of the fine-tuning method (`aggregation_gap`), or None.

        Args:
            before: The exchanged tensors before the round.
            updates: The updates that were aggregated.
            new: The exchanged tensors after the aggregation.
        """
        del before, updates, new
        return None

    def keep(self, server_round: int, model: GlobalModel) -> Callable[[], None]:
        """Copies the state after a round, at a time when no other thread changes the state.

        Returns:
            A function that saves the copy. The loop calls this function after `report`.
        """
        del server_round, model
        return write_nothing
