"""Commands that test a user's own strategy, fine-tuning method, predictor, observer or attack.

A contract is the set of rules for one of the five kinds of code that these commands test.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from fl_vitlora import config
from fl_vitlora.command_line.arguments import confirmed_by, read_overrides, read_strategy
from fl_vitlora.command_line.exits import RULE_BROKEN
from fl_vitlora.config import confirmation

CHECKS = ("check_strategy", "check_method", "check_predictor", "check_observer", "check_attack")
"""The flags that start a test, as the attributes of the parsed command line."""


def check_contract(arguments: argparse.Namespace) -> None:
    """Tests the code that a flag names, for example a strategy or a fine-tuning method."""
    if arguments.check_method is not None:
        check_method(arguments)
    elif arguments.check_predictor is not None:
        check_predictor(arguments.check_predictor)
    elif arguments.check_observer is not None:
        check_observer(arguments.check_observer)
    elif arguments.check_attack is not None:
        check_attack(arguments.check_attack)
    else:
        chosen = read_strategy(arguments)
        check_strategy(chosen, confirmed_by(arguments), verbose=arguments.verbose)


def check_method(arguments: argparse.Namespace) -> None:
    """Tests whether a fine-tuning method obeys every rule for methods, and prints the result.

    Args:
        arguments: The parsed command line.

    Raises:
        SystemExit: If the checked code breaks a rule.
        UserError: If the method cannot be loaded.
    """
    from fl_vitlora.testing.method_report import named

    check_named_method(named(arguments.check_method), read_overrides(arguments))


def check_named_method(name: str, overrides: Mapping[str, Any]) -> None:
    """Tests a fine-tuning method, and prints the result.

    Args:
        name: The name of the method, as for `finetuning.method`.
        overrides: Settings by their dotted paths, such as hyper-parameters of the method.

    Raises:
        SystemExit: If the checked code breaks a rule.
        UserError: If the method cannot be loaded.
    """
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.testing.method_report import report

    chosen = config.load(None, {**overrides, "finetuning.method": name}).finetuning
    told, found, untried = report(chosen)
    print_findings(told, found, untried=untried)
    if any(finding.problem for finding in found):
        raise SystemExit(RULE_BROKEN)


def check_predictor(name: str) -> None:
    """Tests whether a predictor obeys the rules for predictors, and prints the result.

    A predictor computes the logits of test images with a model.

    Args:
        name: A name in the table `PREDICTORS`, the path of a Python file, or
            ``package.module:Class``.

    Raises:
        SystemExit: If the checked code breaks a rule.
        UserError: If the predictor cannot be loaded.
    """
    from fl_vitlora.config.predictor_names import PREDICTORS
    from fl_vitlora.testing import predictor
    from fl_vitlora.testing.own_file import class_named, made

    flag = "--check-predictor"
    path = PREDICTORS.get(name, name)
    kind = class_named(path, flag, lambda kind: hasattr(kind, "adapts"), "class with `adapts`")
    own = made(kind, flag, name)
    _report(kind, "keeps the contract of a predictor", lambda: predictor.check_predictor(own))


def check_observer(name: str) -> None:
    """Tests whether an observer obeys the rules for observers, and prints the result.

    An observer is called in every round with the data that the server sees.

    Args:
        name: The path of a Python file, or ``package.module:Class``.

    Raises:
        SystemExit: If the checked code breaks a rule.
        UserError: If the observer cannot be loaded.
    """
    from fl_vitlora.testing import observer
    from fl_vitlora.testing.own_file import class_named, made

    flag = "--check-observer"
    kind = class_named(name, flag, lambda kind: hasattr(kind, "observe"), "class with `observe`")
    own = made(kind, flag, name)
    _report(kind, "keeps the contract of an observer", lambda: observer.check_observer(own))


def check_attack(name: str) -> None:
    """Tests whether an attack obeys every rule for attacks, and prints the result.

    Args:
        name: A name in the table `ATTACKS`, the path of a Python file, or
            ``package.module:Class``.

    Raises:
        SystemExit: If the checked code breaks a rule.
        UserError: If the attack cannot be loaded.
    """
    from fl_vitlora.attacks.contract import Attack
    from fl_vitlora.config.attack_names import ATTACKS
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.testing.attack import RULES, findings
    from fl_vitlora.testing.own_file import class_named

    kind = class_named(
        ATTACKS.get(name, name),
        "--check-attack",
        lambda kind: issubclass(kind, Attack) and kind is not Attack,
        "class derived from Attack",
    )
    found = findings(kind)
    told = [f"{kind.__module__}:{kind.__qualname__}", str(getattr(kind, "goal", ""))]
    print_findings(told, found, untried=len(RULES) - len(found))
    if any(finding.problem for finding in found):
        raise SystemExit(RULE_BROKEN)


def _report(kind: type[Any], rule: str, check: Callable[[], None]) -> None:
    """Runs a check and prints whether the checked class obeys the rule.

    Args:
        kind: The class that is checked.
        rule: The rule, as the end of a sentence that begins with the name of the class.
        check: A function that raises an `AssertionError` if the rule is broken.

    Raises:
        SystemExit: If the checked class breaks the rule; the exit code is 1.
    """
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.testing import Finding

    problem = None
    try:
        check()
    except AssertionError as error:
        problem = str(error)
    print_findings([f"{kind.__module__}:{kind.__qualname__}"], [Finding(rule, problem)])
    if problem is not None:
        raise SystemExit(RULE_BROKEN)


def check_strategy(
    chosen: config.StrategyConfig, confirmed: frozenset[str], *, verbose: bool
) -> None:
    """Tests whether a strategy obeys every rule for strategies, and prints the result.

    Args:
        chosen: The name and the parameters of the strategy.
        confirmed: The names of code that the user typed on the command line. Code that belongs
            neither to this project nor to Flower is loaded only if the user typed its name.
        verbose: True to show the messages of Flower and Ray.

    Raises:
        SystemExit: If the checked code breaks a rule.
        UserError: If the strategy cannot be loaded.
    """
    confirmation.check_strategy(chosen, confirmed)
    import strategies
    from fl_vitlora.experiment.runner import silence
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.strategy import Strategy
    from fl_vitlora.testing import findings, rules_for, understood

    if not verbose:
        silence()
    strategy = strategies.load(chosen.name, chosen.options)
    if isinstance(strategy, Strategy):
        found, rules = findings(strategy), len(rules_for(strategy))
        told = [repr(strategy), *understood(strategy)]
    else:
        found, rules, told = strategies.check_flower(chosen.name, chosen.options)
    print_findings(told, found, untried=rules - len(found))
    if any(problem for _, problem in found):
        raise SystemExit(RULE_BROKEN)
