"""Searches settings with Optuna: runs trials, and compares them on validation images only.

Every trial is a run in a folder of its own, below the folder of the search. Optuna proposes the
settings of a trial from the results of the trials before it (tree-structured Parzen estimator), and
a trial that is worse than the median of the earlier trials at the same round may end early. Optuna
keeps its results in a database in the folder of the search. So the same search continues where it
was interrupted, and the interrupted trial continues from its last checkpoint. A trial that failed,
for example because the disk was full, is repeated with the same settings.

The proposal of a trial depends on the seed of the experiment, the number of the trial and the
earlier results, but not on interruptions. The test images never decide anything: this module reads
the accuracy or the loss on the validation images, and nothing else.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fl_vitlora.config import differences, resolve
from fl_vitlora.config.search import GOALS, SECTIONS, Search
from fl_vitlora.config.yaml_text import read_yaml, write_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.held_folder import hold_folder, store
from fl_vitlora.experiment.runner import PausedError
from fl_vitlora.experiment.trial_run import Attempt
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.reporting.search_tables import SEARCH, Trial, write_trials
from fl_vitlora.storage.files import Hold, write_atomically

if TYPE_CHECKING:
    import optuna

DATABASE, BEST = "trials.db", "best.yaml"
REPEATS = "repeats"  # the attribute of a trial with the number of the failed trial that it repeats
MOST_FAILED = 2  # the number of trials that fail one after the other before a search is stopped
EXTRA = "a search needs the package optuna: python -m pip install -e '.[search]'"


def default_folder() -> Path:
    """Returns the path of a new folder of a search, whose name contains the present time."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-search"


def prepare_folder(folder: Path, plan: Search) -> Hold:
    """Makes the folder of a search or opens an existing one, and stores the search in the folder.

    Returns:
        A lock. Until the lock is closed, no other process can use the folder.

    Raises:
        UserError: If Optuna is missing, or if the folder cannot be used: it contains other files or
            another search, or another process has locked it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(EXTRA)
    place = folder / SEARCH
    if folder.exists() and not place.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder} already exists and is not the folder of a search; choose a new folder: "
            "--out FOLDER"
        )
    if set("?#%") & set(str(folder)):
        raise UserError(f"{folder}: the path of a search cannot contain ?, # or %")
    hold = hold_folder(folder, "search folder", "search")
    with ExitStack() as undo:
        undo.enter_context(hold)
        if place.is_file():
            _check_same(place, plan)
        store(place, plan.to_tree(), "search folder")
        undo.pop_all()
    return hold


def _check_same(place: Path, plan: Search) -> None:
    """Checks that a search in a folder has the same space and the same fixed settings.

    Raises:
        UserError: If something other than the number of trials and the title differs.
    """
    old, new = read_yaml(str(place)), plan.to_tree()
    own = ("search", "prune", "goal")
    for key in own:
        if old.get(key) != new[key]:
            raise UserError(
                f"{place}: this folder has a search with another {key}; repeat the command with "
                "the settings of this search, or choose a new folder: --out FOLDER"
            )
    begun = resolve({key: value for key, value in old.items() if key not in SECTIONS}, {})
    for path, (was, now) in differences(begun, plan.shared).items():
        raise UserError(
            f"{place}: this folder has a search with {path}={was}, and now it is {now}; repeat the "
            "command with the settings of this search, or choose a new folder: --out FOLDER"
        )


class SearchStoppedError(RuntimeError):
    """An error that says that a search was stopped, because trials failed one after the other."""


def search(
    plan: Search, folder: Path, load_strategy: LoadStrategy, watch: Watch | None = None
) -> Iterator[Trial]:
    """Runs the trials of a search that have not ended, and updates the tables after each trial.

    Args:
        plan: The search.
        folder: The folder of the search, made by `prepare_folder`.
        load_strategy: A function that makes the strategy of an experiment.
        watch: The callbacks of the program that started the search.

    Yields:
        Each trial of this call when it has ended. A trial that is refused, diverges or fails has
        the reason, and the search goes on.

    Raises:
        PausedError: If the caller set `watch.pause` before the last trial had ended.
        SearchStoppedError: If several trials have failed one after the other. Their settings have
            not caused this, so the next trials would fail, too.
        RuntimeError: If the database cannot be written.
    """
    try:
        yield from _trials(plan, folder, load_strategy, watch or Watch())
    except _storage_errors() as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise RuntimeError(f"{folder / DATABASE} cannot be written: {reason}") from error


def _storage_errors() -> type[Exception]:
    """Returns the type of the error that Optuna raises if it cannot use its database."""
    import optuna

    kind: type[Exception] = optuna.exceptions.StorageInternalError
    return kind


def _trials(
    plan: Search, folder: Path, load_strategy: LoadStrategy, watch: Watch
) -> Iterator[Trial]:
    """Runs the trials that have not ended, and yields them; see `search`."""
    study, failed = open_study(plan, folder), list[int]()
    tell(plan, folder, study)
    with Engine(verbose=watch.verbose) as engine:
        for number in _waiting(plan, study):
            watch.training.clear()  # a signal before round 1 ends the program at once
            if watch.pause.is_set():
                raise PausedError(f"after trial {number} of {plan.trials}")
            attempt = Attempt(plan, study, folder, engine, number)
            try:
                attempt.run(load_strategy, watch)
            except PausedError as pause:
                raise PausedError(f"{pause}, trial {number + 1} of {plan.trials}") from None
            trial = tell(plan, folder, study)[number]
            yield trial
            if trial.state != "refused":  # a refused trial has not been run
                failed = [*failed, number] if trial.state == "failed" else []
            if len(failed) == MOST_FAILED:
                both = " and ".join(map(str, failed))
                raise SearchStoppedError(f"trials {both} failed one after the other")


def open_study(plan: Search, folder: Path) -> optuna.Study:
    """Opens the database of a search, or makes it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if plan.pruning is not None:
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=plan.pruning.after_trials, n_warmup_steps=plan.pruning.after_rounds
        )
    return optuna.create_study(
        storage=f"sqlite:///{(folder / DATABASE).absolute()}",
        study_name="search",
        direction=GOALS[plan.goal],
        pruner=pruner,
        load_if_exists=True,
    )


def _waiting(plan: Search, study: optuna.Study) -> Iterator[int]:
    """Yields the numbers of the trials that have not ended.

    These are the interrupted trials, the repetitions of failed trials, and then the new trials.
    """
    for trial in study.get_trials(deepcopy=False):
        if trial.user_attrs.get("state") == "failed" and trial.number not in _repeated(study):
            study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
    known = study.get_trials(deepcopy=False)
    yield from [trial.number for trial in known if not trial.state.is_finished()]
    yield from range(len(known), plan.trials + len(_repeated(study)))


def _repeated(study: optuna.Study) -> dict[int, int]:
    """Returns the numbers of the repeating trials, by the numbers of the failed trials."""
    trials = study.get_trials(deepcopy=False)
    return {t.user_attrs[REPEATS]: t.number for t in trials if REPEATS in t.user_attrs}


def tell(plan: Search, folder: Path, study: optuna.Study) -> list[Trial]:
    """Writes the tables of all trials and the settings of the best trial; returns the trials."""
    again = _repeated(study)
    trials = [
        dataclasses.replace(_told(plan, trial), again=again.get(trial.number))
        for trial in study.get_trials(deepcopy=False)
    ]
    best = write_trials(folder, plan, trials)
    if best is not None:
        head = f"# Trial {best.number} of a search, the best on the validation images.\n"
        write_atomically(folder / BEST, head + write_yaml(plan.stored(best.values)))
    return trials


def _told(plan: Search, trial: optuna.trial.FrozenTrial) -> Trial:
    """Returns a trial as the tables show it."""
    told = trial.user_attrs
    return Trial(
        number=trial.number,
        state="waiting" if trial.state.name == "WAITING" else told.get("state", "interrupted"),
        value=trial.value if trial.state.name == "COMPLETE" else None,
        values={name: trial.params[name] for name in plan.dimensions if name in trial.params},
        rounds=told.get("rounds"),
        sent_bytes=told.get("sent_bytes"),
        seconds=told.get("seconds"),
        folder=str(told.get("folder", "")),
        problem=str(told.get("problem", "")),
    )
