"""Commands that test a user's own file against the rules of its contract."""

from __future__ import annotations

import argparse

from fl_vitlora import config
from fl_vitlora.command_line.arguments import confirmed_by, read_overrides, read_strategy
from fl_vitlora.command_line.exits import RULE_BROKEN
from fl_vitlora.config import confirmation


def check_contract(arguments: argparse.Namespace) -> None:
    """Tests the strategy or the fine-tuning method that a flag names."""
    if arguments.check_method is not None:
        check_method(arguments)
    else:
        chosen = read_strategy(arguments)
        check_strategy(chosen, confirmed_by(arguments), verbose=arguments.verbose)


def check_method(arguments: argparse.Namespace) -> None:
    """Tests a fine-tuning method against every rule of the contract and prints the findings.

    Args:
        arguments: The command line.

    Raises:
        SystemExit: If a rule is broken.
        UserError: If the method cannot be loaded.
    """
    from fl_vitlora.reporting.findings import print_findings
    from fl_vitlora.testing.method_report import named, report

    method = {"finetuning.method": named(arguments.check_method)}
    chosen = config.load(None, read_overrides(arguments) | method).finetuning
    told, found, untried = report(chosen)
    print_findings(told, found, untried=untried)
    if any(finding.problem for finding in found):
        raise SystemExit(RULE_BROKEN)


def check_strategy(
    chosen: config.StrategyConfig, confirmed: frozenset[str], *, verbose: bool
) -> None:
    """Tests a strategy against every rule of the contract and prints the findings.

    Args:
        chosen: The name of the strategy, and its parameters.
        confirmed: The names of code that the user typed.
        verbose: Whether the messages of Flower and Ray are shown.

    Raises:
        SystemExit: If a rule is broken.
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
