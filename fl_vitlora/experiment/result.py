"""Collects the content of the file `result.json`.

The module `server_run` adds the times, and the module `runner` adds the encryption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fl_vitlora.adaptation import policies
from fl_vitlora.communication.summary import reached, summarise
from fl_vitlora.config import Config
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.views import VALIDATION, part_of
from fl_vitlora.experiment.classification import report_of
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.round_line import best_of
from fl_vitlora.experiment.server_model import Server
from fl_vitlora.experiment.watching import Line
from fl_vitlora.federation.evaluation import Score
from fl_vitlora.federation.server_method import joined
from fl_vitlora.finetuning import shelf
from fl_vitlora.finetuning.method import Method
from fl_vitlora.flower.strategies import identity
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.flower.wire.reported_counts import largest_share
from fl_vitlora.population import byzantine, faults
from fl_vitlora.population.ranks import client_ranks
from fl_vitlora.state import State, count
from fl_vitlora.strategy.extras import call, wants


def result_of(
    config: Config,
    strategy: AnyStrategy,
    *,
    parameters: Mapping[str, Any],
    server: Server,
    class_names: Sequence[str],
    record: Record,
) -> Line:
    """Returns the content of `result.json` for a run that has ended.

    Args:
        config: The configuration of the experiment.
        strategy: The strategy of the run.
        parameters: The parameters of the strategy before the first round.
        server: The server's model before the first round.
        class_names: The names of the classes, in the order of the head's outputs.
        record: The record of the run.
    """
    lines = record.lines
    return {
        **_outcome(config, record),
        "seed": config.seed,
        "strategy": config.strategy.name,
        "strategy_class": identity.class_path(strategy),
        "strategy_parameters": parameters,
        "method": config.finetuning.method,
        "aggregation_error": mean_known([line["aggregation_error"] for line in lines]),
        "failures": counted(lines),
        "changes": record.changes,
        "warnings": record.warnings,
        "model": {"name": config.model.name, "weights": server.backbone.source},
        "class_names": list(class_names),
        **report_of(record.details, len(class_names)),
        **_population(config, record),
        **_sizes(config, strategy, server, lines),
        "idle_rounds": sum(not line["moved"] for line in lines),
        "privacy": record.privacy,
        "communication": summarise(record.ledger, record.link, record.full_fine_tuning()),
    }


def _outcome(config: Config, record: Record) -> Line:
    lines = record.lines
    test, validation = (record.measured.get(view) for view in (RIGHT_KEY, VALIDATION))
    return {
        "accuracy": None if test is None else test.accuracy,
        "loss": None if test is None else test.loss,
        "test_images": None if test is None else test.images,
        "validation": None if validation is None else validation._asdict(),
        "best": best(lines, record.best_on_test),
        "accuracy_by_view": {
            view: score.accuracy for view, score in record.measured.items() if view != VALIDATION
        },
        "clients": config.clients,
        "rounds": len(lines),
        "rounds_planned": config.rounds,
        "stopped": _stopped(config, record),
        "target": _target(config, record),
    }


def _target(config: Config, record: Record) -> Line | None:
    """Returns the round, bytes and time at which the target accuracy was first reached.

    The result also states on which images the accuracy was measured.
    """
    accuracies = [line["accuracy"] for line in record.lines]
    found = reached(config.target_accuracy, accuracies, record.ledger, record.link)
    return None if found is None else {**found, "measured_on": part_of(record.view)}


def _stopped(config: Config, record: Record) -> str | None:
    """Returns the reason why the run ended early; None if it did not end early.

    The possible reasons are "strategy", "patience", "budget", and "caller" (the program that
    started the run).
    """
    if record.stopped:
        return record.stopped
    return "budget" if len(record.lines) < config.rounds else None


def _population(config: Config, record: Record) -> Line:
    return {
        "attack": byzantine.hostile(config),
        "faults": faults.unreliable(config),
        "client_ranks": list(client_ranks(config)),
        "largest_share": dict(zip(("client", "share"), largest_share(record.images), strict=True)),
        "secure_aggregation": _sums(config, record.lines),
    }


def _sums(config: Config, lines: Sequence[Line]) -> Line | None:
    """Returns the range and the number of clipped values; None without secure aggregation."""
    if not config.privacy.secure_aggregation:
        return None
    clipped = sum(line["clipped_scalars"] for line in lines)
    return {"range": config.privacy.range, "clipped_scalars": clipped}


def _sizes(config: Config, strategy: AnyStrategy, server: Server, lines: Sequence[Line]) -> Line:
    trained = trained_in(config, strategy, server.initial, lines)
    personal = client_half(strategy).personal
    return {
        "trainable_parameters": count(trained),
        "exchanged_parameters": count(policies.exchanged(config, trained, personal)),
        "total_parameters": count(server.whole),
    }


def method_for(config: Config, strategy: AnyStrategy) -> Method:
    """Returns the fine-tuning method, with the low-rank matrices that the strategy needs."""
    return shelf.method_of(config.finetuning, client_half(strategy).adapter)


def trained_in(
    config: Config, strategy: AnyStrategy, initial: State, lines: Sequence[Line]
) -> State:
    """Returns the tensors that clients train in at least one round.

    Args:
        config: The configuration of the experiment.
        strategy: The strategy, whose plans for clients may freeze tensors. If the plans depend on
            the strategy's state, only the plans of rounds that were run are known.
        initial: All tensors that the method trains.
        lines: The lines of `rounds.jsonl`.
    """
    half, rounds = client_half(strategy), range(1, config.rounds + 1)
    method = method_for(config, strategy)
    if wants(half.plan, "state") or method.decides:
        plans = {tuple(line.get("frozen", ())) for line in lines}
    else:
        plans = {
            joined(call(half.plan, number, client=0).frozen, method.resting(number, {}, initial))
            for number in rounds
        }
    return {
        name: tensor
        for name, tensor in initial.items()
        if not all(name.endswith(frozen) for frozen in plans)
    }


def best(lines: Sequence[Line], on_test: Score | None = None) -> Line | None:
    """Returns the first round with the highest accuracy, and this accuracy.

    Args:
        lines: The lines of `rounds.jsonl`.
        on_test: The result of the best round's model on the test images, if the best round was
            chosen by validation images.

    Returns:
        A dictionary, which also states on which images the accuracy was measured; None if no round
        was evaluated.

    Example:
        >>> best([{"round": 1, "accuracy": None}, {"round": 2, "accuracy": 0.5}])
        {'round': 2, 'accuracy': 0.5, 'measured_on': 'test', 'measured_images': None}
    """
    line = best_of(lines)
    if line is None:
        return None
    found = {
        "round": line["round"],
        "accuracy": line["accuracy"],
        "measured_on": line.get("measured_on", "test"),  # older versions used only test images
        "measured_images": line.get("measured_images"),
    }
    if found["measured_on"] == VALIDATION:
        known = {} if on_test is None else on_test._asdict()
        found |= {f"test_{name}": known.get(name) for name in Score._fields}
    return found


def mean_known(values: Sequence[float | None]) -> float | None:
    """Returns the mean of the numbers that are not None; None if there are no such numbers.

    Example:
        >>> mean_known([1.0, None, 2.0]), mean_known([None])
        (1.5, None)
    """
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def counted(lines: Sequence[Line]) -> Line:
    """Counts the failures of clients in a run.

    Args:
        lines: The lines of `rounds.jsonl`.

    Returns:
        A dictionary with three entries: "updates" is the number of all failures, "clients" has the
        number of failures of each client, and "reasons" has the reason of each client's first
        failure.

    Example:
        >>> late = [{"client": 3, "reason": "no reply within 1 s"}]
        >>> counted([{"failures": late}, {"failures": []}, {"failures": late}])
        {'updates': 2, 'clients': {'3': 2}, 'reasons': {'3': 'no reply within 1 s'}}
    """
    failures = [failed for line in lines for failed in line["failures"]]
    times = sorted(Counter(failed["client"] for failed in failures).items())
    reasons = {failed["client"]: failed["reason"] for failed in reversed(failures)}
    return {
        "updates": len(failures),
        "clients": {str(client): count for client, count in times},
        "reasons": {str(client): reasons[client] for client, _ in times},
    }
