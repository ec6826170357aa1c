"""Compares the outcomes of an audit with the bounds that its user set with ``--fail-if``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.config.attack_bounds import FLAG, VERDICT, VERDICTS, Bound
from fl_vitlora.errors import UserError, unknown


def check_bounds(bounds: Sequence[Bound], attacks: Mapping[str, Attack[Any, Any]]) -> None:
    """Checks that attacks have the adversaries and the figures that bounds name.

    Without this check, no outcome could break a bound with a wrong name.

    Args:
        bounds: The bounds.
        attacks: The attacks that will be carried out, by name.

    Raises:
        UserError: If a bound names an adversary that its attack does not have, or a figure that the
            attack does not declare.
    """
    for bound in (bound for bound in bounds if bound.attack):
        attack = attacks[bound.attack]
        adversaries = [view.adversary for view in attack.adversaries]
        if bound.adversary and bound.adversary not in adversaries:
            where = f"adversary of {bound.attack} in {FLAG} {bound.text!r}:"
            raise unknown(where, bound.adversary, adversaries)
        if bound.figure != VERDICT and not attack.figures:
            raise UserError(
                f"{FLAG} {bound.text!r}: {bound.attack} declares no `figures`, so a misspelt "
                "figure would go unnoticed; add the tuple `figures` to the class of the attack"
            )
        if bound.figure not in (VERDICT, *attack.figures):
            where = f"figure of {bound.attack} in {FLAG} {bound.text!r}:"
            raise unknown(where, bound.figure, [VERDICT, *attack.figures])


def broken(bounds: Sequence[Bound], outcomes: Sequence[Outcome]) -> list[str]:
    """Returns one line for each bound and each outcome that breaks it.

    An attack that its adversary cannot carry out has the verdict "not applicable", and breaks no
    bound on a figure. An attack that ran out of time breaks all its bounds. If an attack was
    carried out, but does not have the figure of a bound, it breaks this bound, because the bound
    cannot be judged.

    Args:
        bounds: The bounds, after `check_bounds` has accepted them.
        outcomes: The outcomes of all attacks.

    Example:
        >>> from fl_vitlora.attacks.results import Figure
        >>> from fl_vitlora.config.attack_bounds import read_bounds
        >>> found = Outcome(attack="span", adversary="server", figures=[Figure(name="a", value=7)])
        >>> broken(read_bounds(["span.a>6", "span.a>7"], ["span"]), [found])
        ["--fail-if 'span.a>6': span, server: a is 7.0 %"]
    """
    return [
        f"{FLAG} {bound.text!r}: {outcome.attack}, {outcome.adversary}: {told}"
        for bound in bounds
        for outcome in outcomes
        if bound.concerns(outcome.attack, outcome.adversary)
        for told in _broken_by(bound, outcome)
    ]


def _broken_by(bound: Bound, outcome: Outcome) -> Iterator[str]:
    """Yields a text that says how an outcome breaks a bound, if it breaks the bound."""
    if outcome.out_of_time:
        yield f"not judged, because {outcome.reason}"
        return
    if bound.figure == VERDICT:
        if bound.is_broken_by(VERDICTS.index(outcome.verdict)):
            yield f"the verdict is {outcome.verdict}"
        return
    if outcome.reason:
        return
    found = next((figure for figure in outcome.figures if figure.name == bound.figure), None)
    if found is None:
        yield f"it has no figure {bound.figure} in this run"
    elif bound.is_broken_by(found.value):
        yield f"{found.name} is {found.shown(found.value)}"
