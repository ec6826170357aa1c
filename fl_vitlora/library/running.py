"""Starts a run from a Python program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_vitlora.config import Config, ModelConfig, given_paths, load, resolve, to_mapping
from fl_vitlora.config.confirmation import check_confirmed, texts_in
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.data.given import Given, expect_given, read_given, with_given
from fl_vitlora.errors import UserError
from fl_vitlora.library.callbacks import Callback, Line
from fl_vitlora.library.finished import FinishedRun, load_run

if TYPE_CHECKING:
    from torch import nn

    from fl_vitlora.experiment.watching import Watch
    from fl_vitlora.flower.strategies.aggregators import AnyStrategy

Settings = Config | Mapping[str, Any] | str | Path


def run(
    config: Settings | None = None,
    settings: Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    test: Any = None,
    class_names: Sequence[str] | None = None,
    model: nn.Module | None = None,
    init_from: FinishedRun | str | Path | None = None,
    strategy: AnyStrategy | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    trust: Collection[str] = (),
    shards: str | Path | None = None,
) -> FinishedRun:
    """Runs an experiment on this machine, as `simulate.py` does, and returns the finished run.

    Any thread may call this function, also several times, one run after the other.

    Args:
        config: The experiment: a mapping of settings by dotted paths or groups, the path of a YAML
            file, or a `Config`. None for the default job.
        settings: Single settings by their dotted paths, which replace those of `config`.
        train: The caller's own training images, in a form that `data.given` describes.
        test: The caller's own test images; None to test on a share of `train`.
        class_names: The names of the classes by label; by default those of `train`.
        model: The caller's own pre-trained model, whose head is not used; see `models.own_model`.
        init_from: A finished run, or its folder, whose trained model is the start of this run.
        strategy: The strategy, if it is not the one that the settings name.
        callbacks: Objects that follow the run; see `library.callbacks`.
        verbose: True if Flower and Ray may write messages.
        trust: The names of other people's code that a YAML file may name. Code that the caller
            names in a mapping or in `settings` needs no confirmation.
        shards: The folder with encrypted shards that owners made elsewhere (`data.shards`).

    Raises:
        UserError: If no run is possible with the settings or the images.
        RuntimeError: If the run failed; `resume` continues it.
    """
    confirmed = frozenset(trust) | _named_by_caller(config, settings)
    settings = {**(settings or {}), **_of_run(init_from), **_of_shards(shards)}
    experiment = settings_of(config, settings)
    check_confirmed(experiment, confirmed)
    given = _given(experiment, train, test, class_names)
    experiment = _with_place(experiment, given)
    if model is not None:
        own = {"model.name": _stored(model, experiment), "out": experiment.out}
        experiment = _with_place(settings_of(config, {**settings, **own}), given)
    whole = _Run(strategy=strategy, callbacks=callbacks, confirmed=confirmed, given=given)
    return whole.start(experiment, verbose=verbose, typed=_typed(config, settings))


def resume(
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    train: Any = None,
    test: Any = None,
    class_names: Sequence[str] | None = None,
    strategy: AnyStrategy | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = False,
    trust: Collection[str] = (),
) -> FinishedRun:
    """Continues an interrupted run, as ``simulate.py --resume`` does; opens a finished one.

    The run continues from its last checkpoint with its own settings.

    Args:
        folder: The run folder.
        settings: Settings that do not change the result, such as `engine.workers`, and new places
            of files that have moved.
        train: The training images, if the run began with images that were handed in. They are
            needed only if the run was interrupted before its first checkpoint.
        test: The test images, as for `run`.
        class_names: The names of the classes, as for `run`.
        strategy: The strategy of the run; None to import the strategy that the settings name.
        callbacks: Objects that follow the run.
        verbose: True if Flower and Ray may write messages.
        trust: The names of code from elsewhere that the run may import.

    Raises:
        UserError: If the folder has no run, if a setting must not change, or if the images are not
            those with which the run began.
        RuntimeError: If the run failed.
    """
    from fl_vitlora.experiment.resuming import check_same
    from fl_vitlora.reporting.run_folder import find_run, located

    folder = Path(folder)
    begun, result = find_run(folder)
    asked = resolve(to_mapping(begun), dict(settings or {}))
    check_same(folder, begun, asked, finished=result is not None)
    confirmed = frozenset(trust) | set(texts_in(dict(settings or {})))
    if result is not None:
        return load_run(folder, trust=confirmed)
    check_confirmed(asked, confirmed)
    given = _given(asked, train, test, class_names)
    if given is not None:
        expect_given(asked.data, given)
    whole = _Run(strategy=strategy, callbacks=callbacks, confirmed=confirmed, given=given)
    return whole.start(located(asked, begun, folder), verbose=verbose, resume=True)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """The objects that a caller hands in, in addition to settings."""

    strategy: AnyStrategy | None
    callbacks: Sequence[Callback]
    confirmed: frozenset[str]
    given: Given | None

    def start(
        self,
        experiment: Config,
        *,
        verbose: bool,
        resume: bool = False,
        typed: frozenset[str] | None = None,
    ) -> FinishedRun:
        """Runs an experiment with callbacks, and returns the finished run."""
        import strategies
        from fl_vitlora.experiment.runner import run as run_experiment
        from fl_vitlora.experiment.starting import with_start

        chosen = self.strategy
        if chosen is None:
            chosen = strategies.load_for(experiment, self.confirmed)
        for callback in self.callbacks:
            callback.on_run_begin(experiment)
        if not resume:
            load = functools.partial(strategies.load_for, confirmed=self.confirmed)
            experiment = with_start(experiment, load)
        watch = watch_for(self.callbacks, verbose=verbose)
        _, folder = run_experiment(
            experiment, chosen, watch, resume=resume, given=self.given, typed=typed
        )
        opened = load_run(folder, trust=self.confirmed)
        finished = dataclasses.replace(opened, strategy=chosen)
        for callback in self.callbacks:
            callback.on_run_end(finished)
        return finished


def _of_run(init_from: FinishedRun | str | Path | None) -> dict[str, str]:
    """Returns the setting that names the finished run from which a run starts."""
    if init_from is None:
        return {}
    folder = init_from.folder if isinstance(init_from, FinishedRun) else init_from
    return {"model.init_from": str(folder)}


def _of_shards(shards: str | Path | None) -> dict[str, str]:
    """Returns the setting that names the folder of shards that owners made elsewhere."""
    return {} if shards is None else {"data.shards": str(shards)}


def _with_place(experiment: Config, given: Given | None) -> Config:
    """Returns settings that name the run folder, and the images that were handed in."""
    from fl_vitlora.reporting.run_folder import default_path

    if given is not None:
        experiment = dataclasses.replace(experiment, data=with_given(experiment.data, given))
    out = experiment.out or str(default_path(experiment))
    return dataclasses.replace(experiment, out=out)


def _stored(model: nn.Module, experiment: Config) -> str:
    """Stores the model of a caller in a file beside the run folder, and returns its name.

    Raises:
        UserError: If workers could not build the model, or if the settings name another model.
    """
    from fl_vitlora.models.own_model import GIVEN_MODELS, store_model
    from fl_vitlora.reporting.run_folder import check_unused

    usual, out = ModelConfig(), Path(str(experiment.out))
    for name in ("name", "weights"):
        if (value := getattr(experiment.model, name)) != getattr(usual, name):
            raise UserError(f"model.{name} {value}: a model was handed in; remove one of the two")
    check_unused(out)
    return store_model(model, out.absolute().parent / GIVEN_MODELS)


def _given(
    experiment: Config, train: Any, test: Any, class_names: Sequence[str] | None
) -> Given | None:
    """Returns the images that a caller hands in; None if there are none.

    Raises:
        UserError: If the images cannot be read, or if test images are given without training
            images.
    """
    if train is not None and experiment.data.shards is not None:
        raise UserError("fv.run: expected train or shards, and both were given; remove one of them")
    if train is not None:
        return read_given(train, test, class_names, experiment.data)
    if test is not None or class_names is not None:
        raise UserError("fv.run: test and class_names need train, the images for training")
    return None


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


def _typed(config: Settings | None, settings: Mapping[str, Any] | None) -> frozenset[str] | None:
    """Returns the dotted paths of the settings that the caller has set; None if unknown."""
    own = dict(settings or {})
    if isinstance(config, Config):
        return None
    if isinstance(config, str | Path):
        return given_paths(read_yaml(str(config)), own)
    return given_paths({}, {**(config or {}), **own})


def _named_by_caller(config: Settings | None, settings: Mapping[str, Any] | None) -> set[str]:
    """Returns all texts in the settings that the caller wrote, without texts from a file."""
    own: Mapping[str, Any] = {}
    if isinstance(config, Config | Mapping):
        own = to_mapping(config) if isinstance(config, Config) else config
    return set(texts_in([own, dict(settings or {})]))


def watch_for(callbacks: Sequence[Callback], *, verbose: bool) -> Watch:
    """Returns the `Watch` through which a run calls the callbacks.

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
