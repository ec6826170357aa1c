"""Starts a run from a Python program."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_vitlora.config import Config, load, resolve, to_mapping
from fl_vitlora.config.confirmation import check_confirmed, texts_in
from fl_vitlora.errors import UserError
from fl_vitlora.library.callbacks import Callback, Line
from fl_vitlora.library.finished import FinishedRun, load_run

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch
    from fl_vitlora.flower.strategies.aggregators import AnyStrategy

Settings = Config | Mapping[str, Any] | str | Path


def run(
    config: Settings | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    strategy: AnyStrategy | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    trust: Collection[str] = (),
) -> FinishedRun:
    """Runs an experiment on this machine, as `simulate.py` does, and returns the finished run.

    This function can be called from any thread. A process may call this function several times, one
    run after the other.

    Args:
        config: The experiment: a mapping of settings, the path of a YAML file, or a `Config`. A
            mapping has dotted paths, ``{"data.limit": 100}``, or groups,
            ``{"data": {"limit": 100}}``. If `config` is None, the default job is run.
        settings: Single settings by their dotted paths, which replace those of `config`.
        strategy: The strategy, if the settings name another strategy. The run folder then names the
            class of this strategy.
        callbacks: Objects that follow the run; see `library.callbacks`.
        verbose: True if Flower and Ray may write messages.
        trust: The names of code outside of this project and Flower that a YAML file may name. Code
            that the caller names in a mapping or in `settings` needs no confirmation.

    Raises:
        UserError: If no run is possible with the settings or the images.
        RuntimeError: If the run failed; ``simulate.py --resume FOLDER`` continues the run.

    """
    import strategies
    from fl_vitlora.experiment.runner import run as run_experiment
    from fl_vitlora.reporting.run_folder import default_path

    experiment = settings_of(config, settings)
    confirmed = frozenset(trust) | _named_by_caller(config, settings)
    check_confirmed(experiment, confirmed)
    chosen = strategies.load_for(experiment, confirmed) if strategy is None else strategy
    out = experiment.out or str(default_path(experiment))
    experiment = dataclasses.replace(experiment, out=out)
    for callback in callbacks:
        callback.on_run_begin(experiment)
    watch = watch_for(callbacks, verbose=verbose)
    _, folder = run_experiment(experiment, chosen, watch)
    finished = dataclasses.replace(load_run(folder, trust=confirmed), strategy=chosen)
    for callback in callbacks:
        callback.on_run_end(finished)
    return finished


def settings_of(config: Settings | None, settings: Mapping[str, Any] | None = None) -> Config:
    """Returns the settings of an experiment in any of the forms that `run` accepts.

    Example:
        >>> settings_of({"clients": 3, "data": {"limit": 50}}, {"rounds": 2}).clients
        3
    """
    given = dict(settings or {})
    if config is None or isinstance(config, str | Path):
        return load(None if config is None else str(config), given)
    if isinstance(config, Config):
        return resolve(to_mapping(config), given)
    return resolve({}, {**config, **given})


def _named_by_caller(config: Settings | None, settings: Mapping[str, Any] | None) -> set[str]:
    """Returns all texts in the settings that the caller wrote, without texts from a file."""
    own: Mapping[str, Any] = {}
    if isinstance(config, Config | Mapping):
        own = to_mapping(config) if isinstance(config, Config) else config
    return set(texts_in([own, dict(settings or {})]))


def watch_for(callbacks: Sequence[Callback], *, verbose: bool) -> Watch:
    """Returns the run's view of callbacks.

    Args:
        callbacks: The objects that follow the run.
        verbose: True if Flower and Ray may write messages.
    """
    from fl_vitlora.experiment.watching import Watch

    def show(line: Line) -> None:
        for callback in callbacks:
            if not callback.on_round_end(dict(line)):
                continue
            if not callback.may_stop:
                raise UserError(
                    f"{type(callback).__name__}.on_round_end returned True, but may_stop of its "
                    "class is False; set may_stop = True"
                )
            watch.stop.set()

    watch = Watch(
        show_round=show, may_stop=any(callback.may_stop for callback in callbacks), verbose=verbose
    )
    return watch
