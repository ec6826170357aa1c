"""Checks of a strategy's class: its form, its names, and its hyper-parameters.

Without the checks of this module, a misspelt method or attribute would be ignored without an error.
The strategy would run, but would not do what its author intended.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Collection, Iterator
from typing import Any

from fl_vitlora.config.settings import check_defaults
from fl_vitlora.strategy import ClientPlan, Strategy
from fl_vitlora.strategy.extras import OFFERED, wants
from fl_vitlora.testing.returned import ContractError

FLAGS = ("low_rank", "any_rank", "sums_suffice")
ADAPTERS = ("lora", "lora_xs", "sandwich")
HALVES = (
    "select",
    "plan",
    "broadcast",
    "penalty",
    "drift",
    "report",
    "aggregate",
    "metrics",
    "should_stop",
)
CONTRACT = ("objection", "step_bound", *HALVES, *FLAGS, "personal", "rebased", "adapter")
LIKENESS = 0.85  # a name this similar to a name of the contract counts as misspelt
FORM = "hyper-parameters must be typed fields of a frozen, keyword-only dataclass: " + (
    "write @dataclass(frozen=True, kw_only=True) above the class, and NAME: float = 0.5 in it"
)


def expect_form(kind: type[Any]) -> None:
    """Checks the Python class of a strategy; no instance is needed.

    Args:
        kind: The Python class of the strategy, which must derive from `Strategy`.

    Raises:
        ContractError: If a name is misspelt, or if a value looks like a hyper-parameter but is not
            one.
        UserError: If a default does not fit its type or range.
    """
    for own in _lineage(kind):
        for name in [*vars(own), *_annotations(own)]:
            if near := _misspelt(name):
                raise ContractError(
                    f"{name} is not a name of the contract; did you mean {near}? "
                    f"(if not, choose a name that is less similar, or _{name})"
                )
        untyped = [name for name, value in vars(own).items() if _is_untyped(own, name, value)]
        typed = [n for n, hint in _annotations(own).items() if "ClassVar" not in str(hint)]
        if untyped:
            raise ContractError(f"{untyped[0]} has no type annotation; {FORM}")
        if typed and "__dataclass_params__" not in vars(own):
            raise ContractError(
                f"{own.__name__} has the field {typed[0]}, but is not a dataclass; {FORM}"
            )
    loose = [item.name for item in dataclasses.fields(kind) if not item.kw_only]
    if loose:
        raise ContractError(f"{loose[0]} is not keyword-only; {FORM}")
    check_defaults(kind, "strategy")


def expect_declaration(strategy: Strategy, names: Collection[str]) -> None:
    """Checks the attributes and methods of a strategy against the contract.

    Args:
        strategy: The instance whose attributes and methods are checked.
        names: The names of all tensors that a model may have.

    Raises:
        ContractError: If an attribute has a wrong value, or a method takes wrong arguments.
        UserError: If a default value does not fit its type or range.
    """
    expect_form(type(strategy))
    for flag in FLAGS:
        if not isinstance(getattr(strategy, flag), bool):
            raise ContractError(
                f"the attribute {flag} is {getattr(strategy, flag)!r}, expected True or False"
            )
    expect_endings(strategy.personal, names, "personal")
    expect_endings(strategy.rebased, names, "rebased")
    if strategy.adapter not in ADAPTERS:
        raise ContractError(
            f"the attribute adapter is {strategy.adapter!r}, expected one of {ADAPTERS}"
        )
    for half in HALVES:
        _expect_arguments(strategy, half)


def expect_plan(plan: object, names: Collection[str]) -> None:
    """Checks that every ending in a plan is the ending of some tensor's name.

    Args:
        plan: The value that the method `plan` of a strategy returned.
        names: The names of all tensors that a model may have.

    Raises:
        ContractError: If an ending fits no name, or if the value is not a `ClientPlan`.
    """
    if not isinstance(plan, ClientPlan):
        raise ContractError(f"plan returned {plan!r}, expected a ClientPlan")
    for rested in ("frozen", "restarted"):
        expect_endings(getattr(plan, rested), names, f"plan.{rested}")


def expect_endings(endings: object, names: Collection[str], what: str) -> None:
    """Checks that a value is a tuple of texts, and that a tensor's name ends with each text.

    Args:
        endings: The value that is checked.
        names: The names of all tensors that a model may have.
        what: The attribute that has this value, for error messages.

    Raises:
        ContractError: If the value is not a tuple of texts, or if a text is the ending of no name.
    """
    if not isinstance(endings, tuple) or not all(isinstance(ending, str) for ending in endings):
        raise ContractError(
            f"{what} is {endings!r}, expected a tuple of endings of names, such as ('.lora_A',)"
        )
    for ending in endings:
        if not any(name.endswith(ending) for name in names):
            near = difflib.get_close_matches(ending, sorted(_endings(names)), n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ContractError(
                f"{what} contains {ending!r}, but no tensor's name ends with it{hint}"
            )


def _expect_arguments(strategy: Strategy, half: str) -> None:
    """Checks that a run can call a method of a strategy with the arguments of the contract."""
    method, expected = getattr(strategy, half), inspect.signature(getattr(Strategy, half))
    names = list(expected.parameters)
    optional = OFFERED.get(half, ())
    told = f"{half}({', '.join(names)})"
    told += f"; it may also take {' and '.join(optional)} by name" if optional else ""
    if not callable(method):
        raise ContractError(f"{half} is {method!r:.40}, expected the method {told}")
    try:
        named = {name: None for name in optional if wants(method, name)}
        inspect.signature(method).bind(*names[1:], **named)
    except TypeError:
        own = ", ".join(map(_without_type, inspect.signature(method).parameters.values()))
        raise ContractError(
            f"{half} takes the arguments ({own}) after self, expected those of {told}"
        ) from None


def _without_type(parameter: inspect.Parameter) -> str:
    return str(parameter.replace(annotation=inspect.Parameter.empty))


def _lineage(kind: type[Any]) -> Iterator[type[Any]]:
    """Yields a strategy's class and its base classes below `Strategy`."""
    return (c for c in kind.__mro__ if issubclass(c, Strategy) and c is not Strategy)


def _annotations(own: type[Any]) -> dict[str, Any]:
    return dict(vars(own).get("__annotations__", {}))


def _misspelt(name: str) -> str | None:
    """Returns the name of the contract that a misspelt name probably means, or None."""
    if name.startswith("_") or name in CONTRACT:
        return None
    plain = {known.replace("_", ""): known for known in CONTRACT}
    near = difflib.get_close_matches(name.lower().replace("_", ""), plain, n=1, cutoff=LIKENESS)
    return plain[near[0]] if near else None


def _is_untyped(own: type[Any], name: str, value: object) -> bool:
    """Returns True if a value looks like a hyper-parameter whose type is missing.

    Constants with names in capitals, private names, functions and names of the contract are not
    hyper-parameters.

    Args:
        own: The class that has the value as an attribute.
        name: The name of the attribute.
        value: The value of the attribute.
    """
    known = name in CONTRACT or name in _annotations(own)
    is_code = callable(value) or hasattr(type(value), "__get__")
    return not (known or name.startswith("_") or name.isupper() or is_code)


def _endings(names: Collection[str]) -> set[str]:
    """Returns all endings of names that begin at a dot, each with the dot and without the dot."""
    found = set()
    for name in names:
        parts = name.split(".")
        rests = [".".join(parts[k:]) for k in range(len(parts))]
        found |= {*rests, *(f".{rest}" for rest in rests[1:])}
    return found
