"""The table of results that is printed at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from fl_vitlora.config.units import readable_bytes
from fl_vitlora.reporting.table_layout import print_named, screen

MOST_NAMED = 3  # the largest number of clients whose failures are listed
ENDED_BY = {
    "strategy": "the strategy ended the run after",
    "patience": "the validation accuracy did not rise (evaluation.patience); the run ended after",
    "budget": "the budget allows",
    "caller": "the program that started the run ended it after",
}


def readable_seconds(seconds: float) -> str:
    """Returns a duration as a text with suitable units.

    Example:
        >>> readable_seconds(7.25), readable_seconds(303), readable_seconds(7322)
        ('7.2 s', '5 min 3 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _key(encryption: Mapping[str, Any]) -> str:
    """Returns a text: the id of the key, its scope, and whether the model is adapted to the key."""
    several = set(encryption.get("key_ids", {}).values())
    if not encryption["key_id"] and not several:
        return "none"
    adapted = ", model adapted" if encryption["adapted"] else ""
    name = f"secrets of {len(several)} owners" if several else encryption["key_id"]
    return (
        f"{name}, scope {encryption['scope']}{adapted}, "
        f"patch embedding {encryption['patch_embedding']}"
    )


def _withstands(encryption: Mapping[str, Any]) -> dict[str, str]:
    """Returns the row that says from how many ciphertexts an attack finds the key.

    If the images are not encrypted, no row is returned.
    """
    found = encryption.get("falls_to_ciphertexts")
    if found is None:
        return {}
    text = found if isinstance(found, str) else f"{found} ciphertexts"
    return {"key falls to": f"{text} (docs/trust.md)"}


def _other_views(accuracy: Mapping[str, float]) -> dict[str, str]:
    """Returns rows for the accuracy under a wrong key and on plain images, if it was measured."""
    names = {"wrong_key": "  under a wrong key", "no_key": "  on plain images"}
    return {
        name: f"{100 * accuracy[view]:.2f} %" for view, name in names.items() if view in accuracy
    }


def _validation(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns rows for the validation accuracy and the best model, if they were measured."""
    last, rows = result.get("validation"), dict[str, str]()
    if last is None:
        return rows
    rows["validation accuracy"] = f"{100 * last['accuracy']:.2f} % ({last['images']:,} images)"
    if best := result["best"]:  # a run that ended early may have no evaluated round
        on_test = best["test_accuracy"]
        told = "unknown" if on_test is None else f"{100 * on_test:.2f} %"
        rows["best model"] = (
            f"of round {best['round']}, chosen by its validation accuracy, "
            f"{100 * best['accuracy']:.2f} %; test accuracy {told}"
        )
    return rows


def _remarks(result: Mapping[str, Any]) -> dict[str, str]:
    """Returns the rows that the table has only for some runs."""
    remarks = {}
    if spent := result["privacy"]:
        remarks["privacy"] = (
            f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for a client's updates, "
            f"after {spent['releases']} releases ({spent['accountant']})"
        )
        if source := spent.get("noise_from"):
            remarks["noise from"] = source
    if sums := result["secure_aggregation"]:
        clipped = sums["clipped_scalars"]
        loss = f"; {clipped} scalars above {sums['range']:g} were clipped" if clipped else ""
        remarks["updates"] = f"the server saw only their sums{loss}"
    if target := result["target"]:
        images = "validation " if target.get("measured_on") == "validation" else ""
        remarks[f"{100 * target['accuracy']:g} % {images}accuracy"] = (
            f"in round {target['round']}, after {readable_bytes(target['bytes'])}"
            if target["reached"]
            else "not reached"
        )
    if result["stopped"]:
        told = ENDED_BY[result["stopped"]]
        remarks["stopped"] = f"{told} {result['rounds']} of {result['rounds_planned']} rounds"
    for change in result["changes"]:
        settings = ", ".join(
            f"{name} {was} -> {now}" for name, (was, now) in change["changed"].items()
        )
        remarks[f"after round {change['after_round']}"] = f"continued with {settings}"
    for warning in result.get("warnings", ()):
        remarks["warning"] = escape(warning)
    if idle := result["idle_rounds"]:
        remarks["idle rounds"] = f"{idle} of {result['rounds']}: the model did not change"
    return remarks


def _with_flower(wire: Mapping[str, Any]) -> str:
    """Returns a text: the saving, if the bytes that Flower adds to messages are counted as well.

    The text is empty for a result of an older version of the program, which has no such number.
    """
    saving = wire.get("saving_with_flower")
    return "" if saving is None else f"; {saving:.1f}x with Flower's own traffic"


def _failures(failures: Mapping[str, Any], folder: str) -> str:
    """Returns a text that names the clients that failed most often.

    Args:
        failures: A dictionary: for each client, the number of its failures ("clients"), and the
            reason of its first failure ("reasons").
        folder: The path of the run folder.
    """
    times: Mapping[str, int] = failures["clients"]
    order = sorted(times, key=lambda client: -times[client])
    lines = [
        f"client {client}, {_times(times[client])}: {failures['reasons'][client]}"
        for client in order[:MOST_NAMED]
    ]
    if more := len(order) - len(lines):
        lines.append(f"and {more} more; see {folder}/failures")
    return "\n".join(lines)


def _times(count: int) -> str:
    """Returns a count as a text: "once", "2 times" and so on."""
    return "once" if count == 1 else f"{count} times"


def print_result(result: Mapping[str, Any], folder: str, console: Console | None = None) -> None:
    """Prints the table of results at the end of a run.

    Args:
        result: The content of `result.json`.
        folder: The path of the run folder.
        console: The console that prints; None for the screen.
    """
    wire, seconds, failures = (result[key] for key in ("communication", "seconds", "failures"))
    share = result["trainable_parameters"] / result["total_parameters"]
    rows = {
        "test accuracy": f"[bold]{100 * result['accuracy']:.2f} %[/bold]",
        **_other_views(result["accuracy_by_view"]),
        **_validation(result),
        "encryption": ", ".join(result["encryption"]["steps"]) or "none: plain images",
        "key": _key(result["encryption"]),
        **_withstands(result["encryption"]),
        "method": f"{result['method']}, {result['strategy']}, {result['clients']} clients, "
        f"{result['rounds']} rounds",
        "trained": f"{result['trainable_parameters']:,} of {result['total_parameters']:,} "
        f"parameters ({100 * share:.2f} %)",
        "uplink": readable_bytes(wire["uplink_bytes"]),
        "downlink": readable_bytes(wire["downlink_bytes"]),
        "full fine-tuning": readable_bytes(wire["full_fine_tuning_bytes"]),
        "saving": f"[bold]{wire['saving']:.1f}x[/bold] fewer bytes{_with_flower(wire)}",
        "time on the wire": f"{readable_seconds(wire['transfer_seconds'])}; full fine-tuning "
        f"{readable_seconds(wire['full_fine_tuning_transfer_seconds'])}",
        **_remarks(result),
        **({"failures": escape(_failures(failures, folder))} if failures["updates"] else {}),
        "time": f"{seconds['total']:.1f} s (set-up {seconds['setup']:.1f} s, "
        f"training {seconds['training']:.1f} s)",
        "run folder": escape(folder),
    }
    named = {name: Text.from_markup(value) for name, value in rows.items()}
    print_named(console or screen(), named)
