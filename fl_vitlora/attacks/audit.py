"""Carries out attacks: hands each attack the views of its adversaries, and scores the guesses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Outcome, averaged
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import View

Views = Callable[[type[View]], Sequence[View]]


def audit(attacks: Mapping[str, Attack[Any, Any]], views: Views, truth: Truth) -> Iterator[Outcome]:
    """Carries out each attack by each of its adversaries.

    Args:
        attacks: The attacks by name.
        views: A function that returns what all adversaries of a kind have, for example what each of
            several workers has.
        truth: The owners' secrets. They are handed to the scoring only.

    Yields:
        The outcomes, in the order of the attacks and of their adversaries.
    """
    for name, attack in attacks.items():
        for kind in attack.adversaries:
            yield carry_out(name, attack, views(kind), truth)


def carry_out(name: str, attack: Attack[Any, Any], views: Sequence[View], truth: Truth) -> Outcome:
    """Carries out an attack once for each view, and returns the mean figures.

    Args:
        name: The name of the attack.
        attack: The attack.
        views: What each adversary of one kind has; at least one view.
        truth: The owners' secrets.

    Returns:
        The outcome. If one of the adversaries lacks something, the attack is not carried out.
    """
    adversary = views[0].adversary
    for view in views:
        if reason := attack.lacks(view):
            return Outcome(attack=name, adversary=adversary, reason=reason)
    started = time.perf_counter()
    guesses = [attack.guess(view) for view in views]
    seconds = time.perf_counter() - started
    figures = averaged([attack.score(guess, truth) for guess in guesses])
    return Outcome(
        attack=name, adversary=adversary, figures=figures, seconds=seconds, victims=len(views)
    )
