"""Every attack keeps the contract on made-up runs, and the check finds attacks that break it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.shelf import attack_of
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView, View, WorkerView
from fl_vitlora.config.attack_names import USUAL
from fl_vitlora.testing.attack import RULES, AttackError, check_attack, findings
from fl_vitlora.testing.attacked_runs import attacked_runs

ON_CIPHERTEXT = "uses no more encrypted images than it may"


@pytest.mark.parametrize("name", USUAL)
def test_an_attack_of_this_project_obeys_every_rule(name: str):
    found = findings(type(attack_of(name, images=1)))
    assert [finding.problem for finding in found if finding.problem] == []
    untried = {rule.told for rule in RULES} - {finding.rule for finding in found}
    assert untried <= {ON_CIPHERTEXT}  # all can be carried out on some made-up run


@pytest.mark.parametrize("name", ["the default settings", "an adapted model", "secure sums"])
def test_an_audit_without_further_words_carries_out_at_least_twelve_attacks(name: str):
    (run,) = [run for run in attacked_runs() if run.name == name]
    attacks = {name: attack_of(name, images=6) for name in USUAL}
    carried_out = [
        name
        for name, attack in attacks.items()
        if any(not attack.lacks(v) for kind in attack.adversaries for v in run.views.get(kind, ()))
    ]
    assert len(carried_out) >= 12, carried_out


@dataclass(frozen=True, kw_only=True)
class Sizes(Attack[View, float]):
    """An attack that obeys every rule."""

    adversaries = (ServerView, WorkerView)
    goal = "How many images a client has."
    figures = ("images", "other images")

    def lacks(self, view: View) -> str:
        return view.lacks_updates() if isinstance(view, ServerView) else ""

    def guess(self, view: View) -> float:
        return 8.0

    def score(self, guess: float, truth: Truth) -> Sequence[Figure]:
        return [Figure(name="images", value=guess, unit="")]


def test_a_right_attack_passes():
    check_attack(Sizes)


class Thawed(Sizes):
    """It is no dataclass of its own."""


class Sightless(Sizes):
    adversaries = (View,)  # type: ignore[assignment]


class Twice(Sizes):
    adversaries = (ServerView, ServerView)  # type: ignore[assignment]


class Aimless(Sizes):
    goal = "How many images a client has. And which."


class Silent(Sizes):
    figures = ()  # type: ignore[assignment]


class Unboundable(Sizes):
    figures = ("images", "images > 3")


class Told(Sizes):
    def guess(self, view: View, truth: Truth) -> float:  # type: ignore[override]
        return 8.0


class Confided(Sizes):
    def guess(self, view: Truth) -> float:  # type: ignore[override]
        return 8.0


class Mute(Sizes):
    def lacks(self, view: View) -> str:
        return None  # type: ignore[return-value]


class Full(Sizes):
    def lacks(self, view: View) -> str:
        return "there are no updates."


class Diced(Sizes):
    def guess(self, view: View) -> float:
        return float(torch.rand(()))


class Writing(Sizes):
    def guess(self, view: View) -> float:
        view.public.images[0, 0, 0, 0] ^= 1
        return 8.0


class Greedy(Sizes):
    def guess(self, view: View) -> float:
        images = view.images if isinstance(view, WorkerView) else None
        return 8.0 if images is None else float(images.double().sum())


class Stumbling(Sizes):
    def guess(self, view: View) -> float:
        raise IndexError(3)


class Undeclared(Sizes):
    def score(self, guess: float, truth: Truth) -> Sequence[Figure]:
        return [Figure(name="pictures", value=guess)]


class Endless(Sizes):
    def score(self, guess: float, truth: Truth) -> Sequence[Figure]:
        return [Figure(name="images", value=float("nan"))]


class Empty(Sizes):
    def score(self, guess: float, truth: Truth) -> Sequence[Figure]:
        return []


class Wordy(Sizes):
    def guess(self, view: View) -> Any:
        return "eight" if isinstance(view, WorkerView) and view.client else 8.0

    def score(self, guess: Any, truth: Truth) -> Sequence[Figure]:
        name = "images" if isinstance(guess, float) else "other images"
        return [Figure(name=name, value=8.0)]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Thawed, "@dataclass\\(frozen=True"),
        (Sightless, "must be a tuple of some of ServerView"),
        (Twice, "each once"),
        (Aimless, "must be one sentence, and it has several"),
        (Silent, "the name of every figure"),
        (Unboundable, "cannot be named by --fail-if"),
        (Told, "must take self and the view of an adversary, nothing else"),
        (Confided, "must not take a Truth as an argument"),
        (Mute, "returned None to the server"),
        (Full, "without its full stop"),
        (Diced, "makes a different guess"),
        (Writing, "changes the view of the server at view.public.images"),
        (Greedy, "depends on more than the first 6"),
        (Stumbling, "`guess` raises IndexError: 3"),
        (Undeclared, "does not declare 'pictures'"),
        (Endless, "expected finite numbers"),
        (Empty, "the same figures for every victim"),
        (Wordy, "the same figures for every victim"),
    ],
)
def test_an_attack_that_breaks_a_rule_is_told_which(kind: type[Sizes], told: str):
    frozen = kind if kind is Thawed else dataclass(frozen=True, kw_only=True)(kind)
    with pytest.raises(AttackError, match=told):
        check_attack(frozen)
