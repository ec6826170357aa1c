"""The texts and tables of a run's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_vitlora.attacks.results import Figure
from fl_vitlora.config.units import readable_bytes
from fl_vitlora.reporting.report import charts
from fl_vitlora.reporting.report.charts import Chart
from fl_vitlora.reporting.report.page import Table
from fl_vitlora.reporting.report.run_files import RunFiles
from fl_vitlora.reporting.result_table import ENDED_BY, readable_seconds

Line = Mapping[str, Any]

MOST_CLIENTS = 100  # the largest number of rows of clients; the worst clients come first
VERDICTS = {"recovered": "recovered", "partly": "partly recovered", "not": "not recovered"}
VIEWS = {"wrong_key": "under a wrong key", "no_key": "on plain images"}


def context_of(files: RunFiles) -> dict[str, Any]:
    """Returns what the template of a run's page shows, by name."""
    result, lines = files.result, files.lines
    classes, clients = result.get("classification"), result.get("client_accuracy")
    return {
        "title": files.name,
        "summary": summary(files),
        "figures": list(figures(result)),
        "remarks": list(remarks(result)),
        "curves": [
            charts.accuracy_chart(lines),
            charts.loss_chart(lines),
            charts.bytes_chart(lines, result["communication"]),
            charts.time_chart(lines),
        ],
        "rounds": rounds_table(lines),
        "partition": None
        if files.counts is None
        else charts.partition_chart(files.counts, files.class_names),
        "pictures": files.pictures,
        "class_charts": list(class_charts(classes, files.class_names)),
        "classes": None if classes is None else classes_table(classes, files.class_names),
        "client_chart": charts.clients_chart(clients) if clients and clients["client"] else None,
        "clients": clients_table(clients) if clients and clients["client"] else None,
        "failure_chart": charts.failures_chart(lines) if result["failures"]["updates"] else None,
        "failures": failures_table(result["failures"]),
        "attacks": None if files.attacks is None else attacks_table(files.attacks),
        "attack_pictures": files.attack_pictures,
        "rule": (files.attacks or {}).get("rule", ""),
        "settings": files.settings,
        "environment": environment_table(files),
    }


def percent(share: float | None) -> str:
    """Returns a share as a text in percent, or a dash for None.

    Example:
        >>> percent(0.9583), percent(None)
        ('95.83 %', '–')
    """
    return "–" if share is None else f"{100 * share:.2f} %"


def points(share: float | None) -> str:
    """Returns a difference of shares as a text in percentage points, or a dash for None."""
    return "–" if share is None else f"{100 * share:.2f} points"


def summary(files: RunFiles) -> str:
    """Returns a sentence that says what was run."""
    result, steps = files.result, files.result["encryption"]["steps"]
    images = f"encrypted images ({', '.join(steps)})" if steps else "plain images"
    return (
        f"{result['clients']:,} clients fine-tuned the model {result['model']['name']} on {images} "
        f"of the data set {Path(files.config.data.name).name} by the method {result['method']}, "
        f"which trains {result['trainable_parameters']:,} of {result['total_parameters']:,} "
        f"parameters, and the strategy {result['strategy']} combined their updates in "
        f"{result['rounds']:,} of {result['rounds_planned']:,} planned rounds."
    )


def figures(result: Line) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each figure at the top of the page."""
    wire = result["communication"]
    yield "test accuracy", percent(result["accuracy"])
    for view, name in VIEWS.items():
        if view in result["accuracy_by_view"]:
            yield f"accuracy {name}", percent(result["accuracy_by_view"][view])
    if held := result.get("validation"):
        yield "validation accuracy", percent(held["accuracy"])
    if classes := result.get("classification"):
        yield "macro F1", percent(classes["macro_f1"])
        yield "calibration error", points(classes["calibration"]["expected_error"])
    if (clients := result.get("client_accuracy")) and clients["client"]:
        yield "worst tenth of clients", percent(clients["worst_tenth"])
        yield "deviation over clients", points(clients["standard_deviation"])
    yield "sent", readable_bytes(wire["uplink_bytes"] + wire["downlink_bytes"])
    yield "full fine-tuning", readable_bytes(wire["full_fine_tuning_bytes"])
    yield "saving", f"{wire['saving']:.1f}x"
    yield "time", readable_seconds(result["seconds"]["total"])


def remarks(result: Line) -> Iterator[str]:
    """Yields sentences about what a reader should know before trusting the figures."""
    yield from result.get("warnings", ())
    if result["stopped"]:
        told = ENDED_BY[result["stopped"]]
        done = f"{result['rounds']} of {result['rounds_planned']} rounds"
        yield f"{told[:1].upper()}{told[1:]} {done}."
    for change in result["changes"]:
        what = ", ".join(f"{name} {was} to {now}" for name, (was, now) in change["changed"].items())
        yield f"After round {change['after_round']} the run continued with changes: {what}."
    falls = result["encryption"].get("falls_to_ciphertexts")
    if falls is not None:
        found = falls if isinstance(falls, str) else f"{falls} ciphertexts"
        yield (
            "Perceptual encryption keeps people from recognising images. It does not withstand "
            f"analysis: an attack finds such a key from {found}."
        )


def rounds_table(lines: Sequence[Line]) -> Table:
    """Returns the figures of all rounds."""
    head = ["round", "accuracy", "loss", "training loss", "uplink", "downlink", "failed", "s"]
    rows = [
        [
            str(line["round"]),
            percent(line["accuracy"]),
            number(line["loss"]),
            number(line["train_loss"]),
            readable_bytes(line["uplink_bytes"]),
            readable_bytes(line["downlink_bytes"]),
            str(len(line["failures"])),
            f"{line['seconds']:.2f}",
        ]
        for line in lines
    ]
    return Table(title="All rounds", head=head, rows=rows)


def number(value: float | None) -> str:
    """Returns a number with four digits, or a dash for None."""
    return "–" if value is None else f"{value:.4g}"


def class_charts(classes: Line | None, class_names: Sequence[str]) -> Iterator[Chart]:
    """Yields the charts of classes and calibration that the run has figures for."""
    if classes is None:
        return
    if classes["confusion_matrix"] is not None:
        yield charts.confusion_chart(classes["confusion_matrix"], class_names)
    if classes["calibration"]["expected_error"] is not None:
        yield charts.calibration_chart(classes["calibration"])


def classes_table(classes: Line, class_names: Sequence[str]) -> Table:
    """Returns precision, recall and F1 of each class."""
    columns = [classes[name] for name in ("precision", "recall", "f1")]
    rows = [
        [name, *(percent(column[place]) for column in columns), f"{classes['support'][place]:,}"]
        for place, name in enumerate(class_names)
    ]
    head = ["class", "precision", "recall", "F1", "test images"]
    return Table(title="Figures of each class", head=head, rows=rows)


def clients_table(told: Line) -> Table:
    """Returns the accuracy of each client, or of the worst if there are many."""
    order = sorted(range(len(told["client"])), key=lambda k: told["accuracy"][k])
    every = len(order) <= MOST_CLIENTS
    rows = [
        [str(told["client"][k]), percent(told["accuracy"][k]), f"{told['images'][k]:,}"]
        for k in order[:MOST_CLIENTS]
    ]
    title = (
        "Clients, the worst first" if every else f"The worst {MOST_CLIENTS} of {len(order)} clients"
    )
    return Table(title=title, head=["client", "accuracy", "test images"], rows=rows)


def failures_table(failures: Line) -> Table | None:
    """Returns each client's number of failures and its first reason; None without failures."""
    if not failures["updates"]:
        return None
    times = sorted(failures["clients"].items(), key=lambda item: -item[1])
    rows = [[client, failures["reasons"][client], str(count)] for client, count in times]
    head = ["client", "first reason", "failed updates"]
    return Table(title="Clients with failed updates", head=head, rows=rows, texts=2)


def attacks_table(attacks: Line) -> Table:
    """Returns the verdict and the figures of each attack on the run."""
    rows = []
    for told in attacks["attacks"]:
        found = [Figure(**figure) for figure in told["figures"]]
        texts = [
            f"{figure.name}: {figure.shown(figure.value)} "
            f"(by chance {figure.shown(figure.floor)}, at best {figure.shown(figure.ceiling)})"
            for figure in found
        ]
        verdict = VERDICTS.get(told["verdict"], told["verdict"])
        rows.append(
            [told["attack"], told["adversary"], verdict, told["reason"] or "; ".join(texts)]
        )
    return Table(
        title="Attacks on this run",
        head=["attack", "adversary", "verdict", "found"],
        rows=rows,
        texts=4,
    )


def environment_table(files: RunFiles) -> Table:
    """Returns a table of the machine, the weights and the key on which the figures depend.

    The working directory of the run is left out, because reports are shown to others.
    """
    known, result = files.environment, files.result
    rows = {
        "weights": str(result["model"]["weights"]),
        "key": str(result["encryption"].get("key_id") or "none"),
        "strategy": str(result["strategy_class"]),
        "seed": str(result["seed"]),
        "Python": str(known.get("python", "unknown")),
        "platform": str(known.get("platform", "unknown")),
        "processors": str(known.get("cpus", "unknown")),
        "GPUs": ", ".join(map(str, known.get("gpus", []))) or "none",
        **{name: str(version) for name, version in known.get("packages", {}).items()},
    }
    return Table(
        title="Environment", head=["what", "value"], rows=[[*row] for row in rows.items()], texts=2
    )
