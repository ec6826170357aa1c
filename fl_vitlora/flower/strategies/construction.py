"""Makes instances of Flower's strategies, with defaults for options that the user does not set.

The server loop chooses the participants of a round. By default, the strategy trains all
participants. A wrapper for differential privacy gets the number of participants, by which it scales
its noise. The strategy inside a wrapper for differential privacy weights all clients equally,
because the noise is scaled for equal weights.
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
COHORT = "num_sampled_clients"  # a parameter of strategies that add noise
ACCOUNTANT = "accountant"  # a parameter of strategies that compute their privacy loss
TARGET_DELTA = "target_delta"  # the user sets this number; the accountant is made from it


@dataclass(frozen=True, kw_only=True)
class Terms:
    """The values, in addition to the user's options, from which a strategy of Flower is made.

    Attributes:
        path: Path of the strategy's options in the settings, such as "strategy.strategy".
        defaults: Default values by name of a parameter. A name is ignored if the constructor of the
            strategy has no parameter of this name.
        clients: Number of clients of the federation.
    """

    path: str
    defaults: Mapping[str, Any]
    clients: int

    @classmethod
    def of(cls, *, cohort: int, clients: int) -> Terms:
        """Returns the terms (default values) of the outermost strategy, for `cohort` clients."""
        defaults = {
            "fraction_evaluate": 1.0,  # the results of all clients that evaluate are aggregated
            "min_train_nodes": 1,
            "min_evaluate_nodes": 0,
            "min_available_nodes": 1,
            COHORT: cohort,
        }
        return cls(path="strategy", defaults=defaults, clients=clients)

    def within(self, kind: type[Any]) -> Terms:
        """Returns the terms (default values) of the strategy inside a wrapper of class `kind`."""
        equal = {"weighted_by_key": messages.EQUAL_WEIGHT} if COHORT in _parameters(kind) else {}
        defaults = {**self.defaults, **equal}
        return replace(self, path=f"{self.path}.{WRAPPED}", defaults=defaults)


def wraps(kind: type[Any]) -> bool:
    """Returns True if strategies of a class wrap another strategy."""
    return WRAPPED in _parameters(kind)


def construct(kind: type[Any], name: str, options: Mapping[str, Any], terms: Terms) -> Any:
    """Makes an instance of a strategy of Flower.

    Args:
        kind: Class of the strategy.
        name: Name of the strategy in the user's configuration.
        options: Options that the user set, and the wrapped strategy if there is one.
        terms: Defaults for the options that the user did not set.

    Returns:
        The instance of the strategy.

    Raises:
        UserError: If an option is unknown, missing or of the wrong type.
    """
    parameters = _settable(kind)
    arguments = {key: value for key, value in terms.defaults.items() if key in parameters}
    for key, value in options.items():
        arguments[key] = convert(_hint(parameters, key, name), value, f"{terms.path}.{key}")
    missing = [key for key, p in parameters.items() if _is_needed(p) and key not in arguments]
    if missing:
        raise UserError(f"strategy {name} needs a value: --set {terms.path}.{missing[0]}=VALUE")
    try:
        if ACCOUNTANT in _parameters(kind):
            delta = arguments.pop(TARGET_DELTA, None)
            arguments[ACCOUNTANT] = None if delta is None else make_accountant(delta, terms.clients)
        return kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"strategy {name}: {error}") from None


def _parameters(kind: type[Any]) -> Parameters:
    """Returns the parameters of a constructor, with evaluated types if that is possible."""
    try:
        return dict(inspect.signature(kind, eval_str=True).parameters)
    except NameError:  # some types are imported for type checkers only
        return dict(inspect.signature(kind).parameters)


def _settable(kind: type[Any]) -> Parameters:
    """Returns the parameters that a user may set."""
    parameters = _parameters(kind)
    if ACCOUNTANT in parameters:
        parameter = parameters.pop(ACCOUNTANT)
        parameters[TARGET_DELTA] = parameter.replace(name=TARGET_DELTA, annotation=float | None)
    return parameters


def _hint(parameters: Parameters, key: str, name: str) -> Any:
    """Returns the type of an option, or `Any` if the constructor accepts every name."""
    if key in parameters:
        return parameters[key].annotation
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return Any
    raise unknown(f"parameter of {name}", key, parameters)


def _is_needed(parameter: inspect.Parameter) -> bool:
    """Returns True if a parameter has no default value and must be set."""
    named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    return named and parameter.default is parameter.empty
