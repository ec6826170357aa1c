"""Makes the lines of `rounds.jsonl`, one line for each round of a run, and finds the best line."""

from __future__ import annotations

from collections.abc import Sequence

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.link import Link, transfer_seconds
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.views import VALIDATION, part_of
from fl_vitlora.experiment.watching import Line
from fl_vitlora.federation.evaluation import Measured
from fl_vitlora.federation.hooks import RoundReport


def line_of(report: RoundReport, measured: Measured, view: str, ledger: Ledger, link: Link) -> Line:
    """Returns the line of a round, made from the round's report and from the sent messages.

    Args:
        report: The report of the round, with accuracy and loss if the model was evaluated.
        measured: The results of the evaluation of the round's model, for each view.
        view: The view on which rounds are evaluated, and with which the run chooses models.
        ledger: The list of all messages so far, with the size of each message in bytes.
        link: The network link for which transfer times are computed.

    Returns:
        The fields of the line, as a dictionary that can be written as JSON.
    """
    line: Line = {
        "round": report.round,
        "accuracy": report.accuracy,
        "loss": report.loss,
        **_images_of(report, measured, view),
        "train_loss": report.train_loss,
        "participants": list(report.participants),
        "failures": [{"client": f.client, "reason": f.reason} for f in report.failures],
        "taken_apart": list(report.taken_apart),
        "moved": report.moved,
        "uplink_bytes": ledger.total("uplink", report.round),
        "downlink_bytes": ledger.total("downlink", report.round),
        "payload_by_group": ledger.by_group(report.round),
        "transfer_seconds": round(_transfer(report.round, ledger, link), 4),
        "aggregation_error": report.aggregation_error,
        "seconds": round(report.seconds, 4),
    }
    if report.frozen:
        line["frozen"] = list(report.frozen)
    if report.clipped is not None:
        line["clipped_scalars"] = report.clipped
    return line


def _images_of(report: RoundReport, measured: Measured, view: str) -> Line:
    """Returns which images were evaluated, their number, and the result on test images."""
    score = None if report.accuracy is None else measured.get(view)
    told: Line = {
        "measured_on": None if report.accuracy is None else part_of(view),
        "measured_images": None if score is None else score.images,
    }
    if view == VALIDATION and score is not None and RIGHT_KEY in measured:
        test = measured[RIGHT_KEY]
        told |= {f"test_{name}": value for name, value in test._asdict().items()}
    return told


def _transfer(server_round: int, ledger: Ledger, link: Link) -> float:
    """Returns the time in seconds that the messages of a round take on the network link."""
    return transfer_seconds(ledger.of_round(server_round), link)[server_round]


def best_of(lines: Sequence[Line]) -> Line | None:
    """Returns the line of the first round with the highest accuracy.

    Args:
        lines: The lines of `rounds.jsonl`. Rounds that were not evaluated are ignored.

    Returns:
        One of the lines; None if no round was evaluated.

    Example:
        >>> best_of([{"accuracy": None}, {"accuracy": 0.5}, {"accuracy": 0.5}]) is None
        False
    """
    evaluated = [line for line in lines if line["accuracy"] is not None]
    return max(evaluated, key=lambda line: float(line["accuracy"]), default=None)
