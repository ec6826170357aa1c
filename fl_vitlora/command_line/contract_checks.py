"""Commands that test a user's own file against the rules of its contract."""

from __future__ import annotations

from fl_vitlora import config
from fl_vitlora.command_line.exits import RULE_BROKEN
from fl_vitlora.config import confirmation


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
    from fl_vitlora.reporting.console import print_findings
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
