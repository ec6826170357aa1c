"""Checks that all trials of a search are measured on the same validation images.

Which images are measured depends on who evaluates: the server has common validation images, and
each client holds out images of its own. Several settings decide who evaluates, such as the scope of
the keys and `finetuning.patch_embedding`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config
from fl_vitlora.config.search import Search
from fl_vitlora.config.search_dimensions import IMAGES, OF_CLIENTS
from fl_vitlora.data.holding_out import has_validation
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.runner import check_settings
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.strategies.aggregators import LoadStrategy


def check_search(plan: Search, load_strategy: LoadStrategy) -> None:
    """Checks what can be known about a search before any trial.

    Args:
        plan: The search.
        load_strategy: A function that makes the strategy of an experiment.

    Raises:
        UserError: If the experiment has no validation images, or cannot run with the settings of
            the file, before any of them is varied; or if trials would be measured on different
            images.
    """
    shared = _as_it_runs(plan, {}, load_strategy)
    if not has_validation(shared.data):
        raise UserError(
            "search: expected validation images, because the test images must not choose settings; "
            "hold out a share of the training images, for example --set "
            "data.validation_fraction=0.1, or name a split: --set data.validation_split=NAME"
        )
    if policies.clients_evaluate(shared):
        for path in plan.varied:
            if path in OF_CLIENTS:
                raise UserError(
                    f"search: {path} cannot vary, because each client holds out validation images "
                    f"of its own: {IMAGES}; hold it fixed, or set evaluation.by=central"
                )
    for name, label in plan.options:
        told = ""
        with suppress(UserError):  # such a trial is refused, and the search goes on
            told = _difference(shared, _as_it_runs(plan, {name: label}, load_strategy))
        if told:
            raise UserError(f"search: {name} cannot have the value {label}: {told}")


def check_trial(plan: Search, values: Mapping[str, Any], load_strategy: LoadStrategy) -> None:
    """Checks that a trial is measured on the same images as the experiment of the file.

    Two options together may change who evaluates, although each of them alone changes nothing.

    Args:
        plan: The search.
        values: The values of the trial, by the name of the dimension: a number for a range, a label
            for a choice.
        load_strategy: A function that makes the strategy of an experiment.

    Raises:
        UserError: If the trial is measured on other images, or cannot run.
    """
    shared = _as_it_runs(plan, {}, load_strategy)
    if told := _difference(shared, _as_it_runs(plan, values, load_strategy)):
        raise UserError(told)


def _difference(shared: Config, trial: Config) -> str:
    """Returns the reason why a trial is measured on other images; "" if the images are the same."""
    if not has_validation(trial.data):
        return f"there are no validation images, so {IMAGES}"
    usual, own = policies.clients_evaluate(shared), policies.clients_evaluate(trial)
    if usual == own:
        return ""
    who = ("the server evaluates on common images", "each client evaluates on its own images")
    return (
        f"with it {who[own]}, and with the settings of the file {who[usual]}, so {IMAGES}; "
        "write the same evaluation.by for all trials, or leave this value out"
    )


def _as_it_runs(plan: Search, values: Mapping[str, Any], load_strategy: LoadStrategy) -> Config:
    """Returns the configuration with which a trial runs.

    Raises:
        UserError: If the trial cannot run.
    """
    config = plan.experiment(values)
    typed, strategy = plan.typed(values), load_strategy(config)
    return check_settings(config, strategy, Watch(), typed=typed)[1]
