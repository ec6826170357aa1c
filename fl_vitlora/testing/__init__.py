"""The checks of the contracts; this page has those of strategies and of observers.

    from fl_vitlora.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy(rate=0.5))

A strategy is checked on a small made-up model, whatever its algorithm is. The checks look for what
would make any run wrong: lost or reshaped tensors, NaN, hidden memory, results that depend on the
order of the answers, arguments that were written to, missing clients. The command line does
the same, and prints every rule with its finding:

    python simulate.py --check-strategy my_strategy --set strategy.rate=0.5

`made_up` has the model and the deltas, `play` the rounds, `rules` the rules, `declared` and
`returned` the checks of a class and of returned values, and `understood` the description that an
author reads first. `method`, `predictor` and `observer` check the other contracts.
"""

from __future__ import annotations

from typing import NamedTuple

from fl_vitlora.strategy import Strategy
from fl_vitlora.testing.blaming import StrategyError
from fl_vitlora.testing.made_up import made_up_model
from fl_vitlora.testing.observer import ObserverError, check_observer
from fl_vitlora.testing.play import made_up_updates
from fl_vitlora.testing.rules import RULES, Rule
from fl_vitlora.testing.understood import understood

__all__ = [
    "Finding",
    "ObserverError",
    "StrategyError",
    "check_observer",
    "check_strategy",
    "findings",
    "made_up_model",
    "made_up_updates",
    "rules_for",
    "understood",
]


class Finding(NamedTuple):
    """The finding of one rule.

    Attributes:
        rule: The rule in words.
        problem: One line on how the rule is broken; None if it is kept.
    """

    rule: str
    problem: str | None


def check_strategy(strategy: Strategy) -> None:
    """Checks one instance of a strategy against the rules of `fl_vitlora.strategy`.

    It plays a few rounds with four made-up clients, both halves, and checks the results by `RULES`.

    Args:
        strategy: The strategy with the hyper-parameters that are checked.

    Raises:
        StrategyError: If a rule is broken; the message names the first.

    Example:
        >>> import strategies
        >>> check_strategy(strategies.load("fedavg", {}))
    """
    for rule in rules_for(strategy):
        rule.check(strategy)


def rules_for(strategy: Strategy) -> list[Rule]:
    """Returns the rules that apply to a strategy, in their order."""
    return [rule for rule in RULES if rule.concerns(strategy)]


def findings(strategy: Strategy) -> list[Finding]:
    """Checks a strategy by all rules, and returns the finding of each.

    It ends early if one of the first rules is broken, since all others would find the same.

    Args:
        strategy: The strategy with the hyper-parameters that are checked.

    Returns:
        One finding for each rule that was tried, in the order of `rules_for`.

    Example:
        >>> import strategies
        >>> findings(strategies.load("fedavg", {}))[0]
        Finding(rule='says of itself what the contract knows', problem=None)
    """
    found = []
    for rule in rules_for(strategy):
        try:
            rule.check(strategy)
        except StrategyError as error:
            found.append(Finding(rule.told, str(error)))
            if rule.first:
                break
        else:
            found.append(Finding(rule.told, None))
    return found
