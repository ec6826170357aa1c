"""An attack without time left makes no guess, and its outcome says so."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from fl_vitlora.attacks.audit import audit
from fl_vitlora.attacks.clock import UNLIMITED, Clock, OutOfTimeError
from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_search.matching import best_orders
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.shelf import attack_of
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import OutsiderView, ServerView, View
from fl_vitlora.config.attack_names import ATTACKS
from fl_vitlora.testing.attacked_runs import attacked_runs
from tests.attacks.made_up_views import digits, public, settings

KNOWN = public(settings(), digits(0, 2).images)


@dataclass(frozen=True, kw_only=True)
class Waiting(Attack[View, int]):
    """It asks its clock for ever."""

    adversaries: ClassVar[tuple[type[View], ...]] = (ServerView, OutsiderView)
    goal = "The end of time."

    def guess(self, view: View) -> int:
        for _ in itertools.count():
            view.clock.check()
        return 0

    def score(self, guess: int, truth: Truth) -> Sequence[Figure]:
        return []


def views(kind: type[View]) -> Sequence[View]:
    return [kind(public=KNOWN)]


def test_a_budget_ends_an_attack_that_asks_its_clock():
    began = list[tuple[str, str]]()
    first, second = audit(
        {"waiting": Waiting()},
        views,
        Truth(),
        seconds=0.01,
        began=lambda attack, adversary: began.append((attack, adversary)),
    )
    for outcome in (first, second):
        assert (outcome.verdict, outcome.figures) == ("out of time", ())
        assert outcome.reason == "its budget of 0.01 s ended (--attack-seconds)"
    assert began == [("waiting", "server"), ("waiting", "outsider")]


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_guesses_after_its_budget(name: str):
    attack = attack_of(name, images=3)
    run = attacked_runs()[0]
    for outcome in audit({name: attack}, run.views.__getitem__, run.truth, seconds=1e-9):
        assert outcome.verdict in ("out of time", "not applicable")


def test_a_search_can_be_ended_between_two_starts():
    calls = iter(range(3))

    def check() -> None:
        if next(calls, None) is None:
            raise OutOfTimeError

    known = np.eye(4)
    with pytest.raises(OutOfTimeError):
        best_orders(known, known, np.random.default_rng(0), check=check)


def test_a_clock_without_a_budget_never_ends():
    Clock().check()
    UNLIMITED.check()
