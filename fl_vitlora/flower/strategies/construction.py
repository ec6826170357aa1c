"""Instances of Flower's strategies: what they are told unless the user says otherwise.

The server loop chooses the participants and evaluates, so a strategy trains on all that it is
shown. A wrapper for differential privacy is told how many they are, since its noise is scaled by
that, and the strategy within weighs them equally, since its noise is scaled for that, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fl_vitlora.config.settings import convert
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.flower.strategies.accounting import make_accountant
from fl_vitlora.flower.wire import messages

Parameters = dict[str, inspect.Parameter]

WRAPPED = "strategy"  # the parameter of wrappers that takes another strategy
COHORT = "num_sampled_clients"  # of those that add noise
ACCOUNTANT = "accountant"  # of those that count what the noise is worth
TARGET_DELTA = "target_delta"  # is set in its place, as no text can give an accountant


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What is known of a strategy before it is made.

    Attributes:
        path: Where its options stand among the settings.
        defaults: Of its parameters; those that its constructor lacks are left out.
        clients: How many there are.
    """

    path: str
    defaults: Mapping[str, Any]
    clients: int

    @classmethod
    def of(cls, *, cohort: int, clients: int) -> Terms:
        """Says what the outermost strategy is told, if so many clients take part in a round."""
        defaults = {
            "fraction_evaluate": 1.0,  # of the clients that measure, all are summed up
            "min_train_nodes": 1,
            "min_evaluate_nodes": 0,
            "min_available_nodes": 1,
            COHORT: cohort,
        }
        return cls(path="strategy", defaults=defaults, clients=clients)

    def within(self, kind: type[Any]) -> Terms:
        """Says what a strategy is told that stands in a wrapper."""
        equal = {"weighted_by_key": messages.EQUAL_WEIGHT} if COHORT in _parameters(kind) else {}
        defaults = {**self.defaults, **equal}
        return replace(self, path=f"{self.path}.{WRAPPED}", defaults=defaults)


def wraps(kind: type[Any]) -> bool:
    """Tells whether a class of strategies takes another one."""
    return WRAPPED in _parameters(kind)


def construct(kind: type[Any], name: str, options: Mapping[str, Any], terms: Terms) -> Any:
    """Makes an instance of a strategy that has a constructor of its own.

    Args:
        kind: Its class.
        name: What the user calls it.
        options: Of the user; among them what it wraps, already made.
        terms: What it is told beside them.

    Returns:
        The instance.

    Raises:
        UserError: When an option is unknown, is missing or does not fit.
    """
    parameters = _settable(kind)
    given = {key: value for key, value in terms.defaults.items() if key in parameters}
    for key, value in options.items():
        given[key] = convert(_hint(parameters, key, name), value, f"{terms.path}.{key}")
    missing = [key for key, p in parameters.items() if _is_needed(p) and key not in given]
    if missing:
        raise UserError(f"strategy {name} needs a value: --set {terms.path}.{missing[0]}=VALUE")
    try:
        if ACCOUNTANT in _parameters(kind):
            delta = given.pop(TARGET_DELTA, None)
            given[ACCOUNTANT] = None if delta is None else make_accountant(delta, terms.clients)
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise UserError(f"strategy {name}: {error}") from None


def _parameters(kind: type[Any]) -> Parameters:
    """Finds what a constructor takes, and its types where they can be known."""
    try:
        return dict(inspect.signature(kind, eval_str=True).parameters)
    except NameError:  # types that are imported for type checkers only
        return dict(inspect.signature(kind).parameters)


def _settable(kind: type[Any]) -> Parameters:
    """Finds what a user may set."""
    parameters = _parameters(kind)
    if ACCOUNTANT in parameters:
        parameter = parameters.pop(ACCOUNTANT)
        parameters[TARGET_DELTA] = parameter.replace(name=TARGET_DELTA, annotation=float | None)
    return parameters


def _hint(parameters: Parameters, key: str, name: str) -> Any:
    """Finds the type of an option; anything goes where a constructor takes any name."""
    if key in parameters:
        return parameters[key].annotation
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return Any
    raise unknown(f"parameter of {name}", key, parameters)


def _is_needed(parameter: inspect.Parameter) -> bool:
    named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return named and parameter.default is parameter.empty
