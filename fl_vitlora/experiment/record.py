"""The record of a run: sent bytes, the lines of `rounds.jsonl`, and the evaluation results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.communication.budget import affords, cost_of_evaluation
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.link import Link
from fl_vitlora.communication.reference import Attendance, MessageSizes, full_fine_tuning
from fl_vitlora.config import Config
from fl_vitlora.data.holding_out import has_validation
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.views import VALIDATION
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.details import Details
from fl_vitlora.experiment.round_line import best_of, line_of
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.federation.evaluation import Measured, Score
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundReport
from fl_vitlora.federation.learning import warning
from fl_vitlora.flower.wire.reported_counts import largest_share
from fl_vitlora.flower.wire.wiring import lanes_of
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.strategy import RoundResult

# If a run has at least 3 clients, it warns if one client has more than this share of all images.
MOST_OF_ALL, FEWEST_COMPARED = 0.5, 3


class Record:
    """The record of a run so far. At the end of each round, the record gets the round's results.

    Args:
        config: The configuration of the experiment.
        class_names: The names of the classes, in the order of the head's outputs.
        folder: The run folder.
        logbook: The object that writes a line for each round into the run folder.
        watch: The callbacks of the program that started the run.

    Attributes:
        ledger: The list of all messages so far, with the size of each message in bytes.
        lines: One line of `rounds.jsonl` for each round so far.
        measured: The results of the evaluation of the last round's model, for each view; empty if
            this model was not evaluated.
        evaluated: The metrics that a strategy computed from the clients' evaluation of the last
            round's model.
        details: The details of the evaluation on test images, for the report about the last model.
        best_on_test: The result of the best model on the test images; None if the result is
            unknown, or if the run has no validation images.
        sizes: The sizes of the messages of full fine-tuning; None until the sizes are measured.
        shares: The share of each class in the images of the evaluation; empty until the shares are
            known.
        privacy: The statement on differential privacy; None until the run has ended.
        images: The number of images that each client reported in its first message.
        changes: The libraries and code that had changed when the run was resumed, with the number
            of the round.
        stopped: The reason why the run ended before its last round; None if it did not end early.
            The reason is "strategy", "patience", or "caller" (the program that started the run).
    """

    def __init__(
        self,
        config: Config,
        class_names: Sequence[str],
        folder: RunFolder,
        logbook: Logbook,
        watch: Watch,
    ) -> None:
        self._config, self._class_names = config, class_names
        self._folder, self._logbook, self._watch = folder, logbook, watch
        self.ledger = Ledger()
        self.lines: list[Line] = []
        self.measured: Measured = {}
        self.evaluated: Line = {}
        self.details = Details()
        self.best_on_test: Score | None = None
        self.sizes: MessageSizes | None = None
        self.shares: list[float] = []
        self.privacy: dict[str, Any] | None = None
        self.images: dict[int, int] = {}
        self.changes: list[Line] = []
        self.stopped: str | None = None

    @property
    def warnings(self) -> list[str]:
        """Returns the warnings of the rounds so far."""
        return [text for line in self.lines for text in line.get("warnings", [])]

    @property
    def view(self) -> str:
        """Returns the view on which each round is evaluated, and with which the run chooses models.

        The view shows the validation images if the run has validation images, otherwise the test
        images.
        """
        return VALIDATION if has_validation(self._config.data) else RIGHT_KEY

    @property
    def last(self) -> RoundResult | None:
        """Returns the result of the last round; None without rounds, or if it was not evaluated."""
        if not self.lines or self.lines[-1]["accuracy"] is None:
            return None
        line = self.lines[-1]
        return RoundResult(
            accuracy=line["accuracy"],
            loss=line["loss"],
            train_loss=line["train_loss"],
            participants=tuple(line["participants"]),
        )

    @property
    def link(self) -> Link:
        """Returns the network link for which transfer times are computed."""
        link = self._config.link
        return Link(
            uplink=link.uplink_mbps, downlink=link.downlink_mbps, latency=link.latency_ms / 1000
        )

    def greeted(self, images: dict[int, int]) -> None:
        """Stores the clients' numbers of images, and warns if one client claims most images."""
        self.images.update(images)
        client, share = largest_share(self.images)
        if share > MOST_OF_ALL and len(self.images) >= FEWEST_COMPARED:
            self._watch.announce(
                f"client {client} reports {share:.0%} of all images, and its updates get this "
                "weight; the setting max_client_share limits the weight of a client"
            )

    def take_up(
        self, ledger: Ledger, lines: Sequence[Line], measured: Measured, details: Details
    ) -> None:
        """Continues with the content of a checkpoint, and shows the rounds of the checkpoint.

        Args:
            ledger: The list of all messages until the checkpoint, with the size of each message.
            lines: One line of `rounds.jsonl` for each round until the checkpoint.
            measured: The results of the last evaluation before the checkpoint, for each view.
            details: The details of the last evaluation before the checkpoint.
        """
        self.ledger.replace(ledger)
        for line in lines:
            self.lines.append(line)
            self._watch.show_round(line)
        self.measured.update(measured)
        self.details.take(details)

    def affords(self, server_round: int, *, evaluation: bool = False) -> bool:
        """Returns True if the byte budget allows another round.

        Args:
            server_round: The number of the next round, from 1.
            evaluation: True if the budget must also allow an evaluation by clients after the round.

        Raises:
            UserError: If the budget does not allow the first round.
        """
        budget = self._config.budget
        reserve = 0
        if budget is not None and evaluation:
            reserve = cost_of_evaluation(self.ledger, self._config.clients)
        allowed = affords(budget, self.ledger, server_round, reserve=reserve)
        if not allowed and server_round == 1:
            raise UserError(
                f"budget {budget}: the first messages, in which the server asks each client for "
                f"its number, already took {self.ledger.total()} bytes, so no round can begin; "
                "set a larger budget"
            )
        return allowed

    def note(self, failures: Sequence[Failure]) -> None:
        """Stores the reason of each client's failure in a round, in the run folder."""
        for failed in failures:
            self._folder.write_failure(failed.round, failed.client, failed.trace)

    def report(self, report: RoundReport, model: GlobalModel) -> None:
        """Stores and shows the results of a round; stores the model if it is the best so far."""
        line = self._line_of(report)
        self.lines.append(line)
        if report.accuracy is not None and best_of(self.lines) is line:
            self._folder.write_best(model.stored(), report.round, self._class_names)
        self._logbook.note_round(line)
        self._watch.show_round(line)

    def _line_of(self, report: RoundReport) -> Line:
        """Returns the line of a round, including warnings and metrics of the strategy, if any."""
        line = line_of(report, self.measured, self.view, self.ledger, self.link)
        if text := warning([*self.lines, line], self._config, self.shares):
            line["warnings"] = [text]
        if report.metrics:
            line["strategy_metrics"] = dict(report.metrics)
        if self.evaluated:
            line["strategy_evaluation"] = dict(self.evaluated)
        return line

    def full_fine_tuning(self) -> Ledger:
        """Returns the ledger that full fine-tuning with FedAvg would have after these rounds.

        Raises:
            ValueError: If the sizes of the messages of full fine-tuning are not measured yet.
        """
        if self.sizes is None:
            raise ValueError("the messages of full fine-tuning are measured at the end of a run")
        return full_fine_tuning(
            self._config.clients,
            [Attendance.of(line) for line in self.lines],
            self.sizes,
            start_is_known=not lanes_of(self._config.compression.downlink).exact,
        )
