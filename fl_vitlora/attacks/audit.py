"""Carries out attacks: gives each attack the views of its adversaries, and scores the guesses."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fl_vitlora.attacks.clock import Clock, OutOfTimeError
from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Outcome, averaged
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import View

Views = Callable[[type[View]], Sequence[View]]
Began = Callable[[str, str], None]


def audit(
    attacks: Mapping[str, Attack[Any, Any]],
    views: Views,
    truth: Truth,
    *,
    seconds: float = math.inf,
    began: Began = lambda attack, adversary: None,
    pictures: bool = False,
) -> Iterator[Outcome]:
    """Carries out each attack by each of its adversaries.

    Args:
        attacks: The attacks by name.
        views: A function that gets a Python class, such as `WorkerView`, and returns the views of
            this class: one view for each adversary, for example for each worker.
        truth: The owners' secrets. Only the scoring gets them.
        seconds: The time budget of each attack, for all of its adversaries together, in seconds.
        began: A function that is called with the names of an attack and its adversary before the
            attack is carried out.
        pictures: True if each outcome must contain the recovered images.

    Yields:
        The outcomes, in the order of the attacks and of their adversaries.
    """
    for name, attack in attacks.items():
        clock = Clock.of(seconds)
        for kind in attack.adversaries:
            began(name, kind.adversary)
            outcome = carry_out(
                name,
                attack,
                [replace(view, clock=clock) for view in views(kind)],
                truth,
                pictures=pictures,
            )
            late = f"its budget of {seconds:g} s ended (--attack-seconds)"
            yield replace(outcome, reason=late) if outcome.out_of_time else outcome


def carry_out(
    name: str,
    attack: Attack[Any, Any],
    views: Sequence[View],
    truth: Truth,
    *,
    pictures: bool = False,
) -> Outcome:
    """Carries out an attack once for each view, and returns the mean figures.

    Args:
        name: The name of the attack.
        attack: The attack.
        views: The views of all adversaries of one Python class; at least one view.
        truth: The owners' secrets.
        pictures: True if the outcome must contain the recovered images of the first victim.

    Returns:
        The outcome. If one of the adversaries lacks something, the attack is not carried out. If
        the time is up before every adversary has guessed, there are no figures.
    """
    adversary, started, guesses = views[0].adversary, time.perf_counter(), list[Any]()
    for view in views:
        if reason := attack.lacks(view):
            return Outcome(attack=name, adversary=adversary, reason=reason)
    try:
        for view in views:
            view.clock.check()
            guesses.append(attack.guess(view))
    except OutOfTimeError:
        return Outcome(
            attack=name,
            adversary=adversary,
            seconds=time.perf_counter() - started,
            reason="its time was up",
            out_of_time=True,
        )
    seconds = time.perf_counter() - started
    figures = averaged([attack.score(guess, truth) for guess in guesses])
    return Outcome(
        attack=name,
        adversary=adversary,
        figures=figures,
        seconds=seconds,
        victims=len(views),
        pictures=attack.pictures(guesses[0], truth) if pictures else {},
    )
