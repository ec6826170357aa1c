"""The contract of a callback, an object that follows a run and may end it early.

This complete callback ends a run as soon as the accuracy reaches 90 %:

    >>> class UntilGood(Callback):
    ...     may_stop = True
    ...     def on_round_end(self, line):
    ...         return line["accuracy"] is not None and line["accuracy"] >= 0.9
    >>> UntilGood().on_round_end({"round": 7, "accuracy": 0.91})
    True

Callbacks are called in the process that started the run, in the order in which they were given. An
error in a callback ends the run; the run can be resumed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from fl_vitlora.config import Config
    from fl_vitlora.library.finished import FinishedRun

Line = dict[str, Any]  # a line of rounds.jsonl


class Callback:
    """Follows a run. A subclass defines the methods that it needs.

    Attributes:
        may_stop: True if `on_round_end` may return True. If `may_stop` is True, the model of a
            round is evaluated before the next round begins. If `may_stop` is False, the model may
            be evaluated while the next round runs.
    """

    may_stop: ClassVar[bool] = False

    def on_run_begin(self, config: Config) -> None:
        """Receives the settings of the run, before its images are read.

        Args:
            config: The settings. The setting `out` is the path of the run folder.
        """

    def on_round_end(self, line: Line) -> bool | None:
        """Receives the results of a round.

        Args:
            line: The line of `rounds.jsonl`, with the keys `round`, `accuracy`, `loss`,
                `train_loss`, `uplink_bytes`, `downlink_bytes`, `seconds` and others. Accuracy and
                loss are None if the round was not evaluated.

        Returns:
            True to end the run after this round, as if it were the last round; `may_stop` must then
            be True. If this round was not evaluated, the run ends after the next evaluated round.
        """

    def on_run_end(self, run: FinishedRun) -> None:
        """Receives the finished run. This method is not called if the run failed or was paused.

        Args:
            run: The finished run.
        """


class EarlyStopping(Callback):
    """Ends a run when its accuracy or loss has not improved for some evaluated rounds.

    The accuracy and the loss are measured on the validation images if the run has any. Without
    validation images they are measured on the test images. The test images then decide which round
    is the last. (The setting `evaluation.patience` refuses a run without validation images.)

    Args:
        patience: The number of evaluated rounds without an improvement after which the run ends.
        watched: The number to watch, "accuracy" (higher is better) or "loss" (lower is better).
        least: An improvement counts only if it is larger than `least`.

    Example:
        >>> stopping = EarlyStopping(2)
        >>> [stopping.on_round_end({"accuracy": value}) for value in (0.5, None, 0.4, 0.5)]
        [False, False, False, True]
    """

    may_stop = True

    def __init__(self, patience: int, watched: str = "accuracy", least: float = 0.0) -> None:
        if watched not in ("accuracy", "loss"):
            raise ValueError(f"watched {watched!r}: expected 'accuracy' or 'loss'")
        if patience < 1:
            raise ValueError(f"patience {patience}: expected at least 1")
        self._patience, self._watched, self._least = patience, watched, least
        self._best, self._waited = -math.inf, 0

    def on_run_begin(self, config: Config) -> None:
        """Forgets the rounds of an earlier run."""
        del config
        self._best, self._waited = -math.inf, 0

    def on_round_end(self, line: Line) -> bool:
        """Returns True if the number has not improved for `patience` evaluated rounds."""
        value = line[self._watched]
        if value is None:
            return False
        score = value if self._watched == "accuracy" else -value
        if score > self._best + self._least:
            self._best, self._waited = score, 0
        else:
            self._waited += 1
        return self._waited >= self._patience
