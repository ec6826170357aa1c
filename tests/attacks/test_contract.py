"""Every attack keeps the contract: it names adversaries, and no secret reaches its guess."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from fl_vitlora.attacks.audit import audit, carry_out
from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import PART, WHOLE, Figure, Outcome, averaged
from fl_vitlora.attacks.shelf import attack_of
from fl_vitlora.attacks.truth import Opened, Truth
from fl_vitlora.attacks.views import ADVERSARIES, OutsiderView, ServerView, View, WorkerView
from fl_vitlora.config.attack_names import ATTACKS, read_attacks
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.errors import UserError
from tests.attacks.made_up_views import digits, public, settings

KNOWN = public(settings(), digits(0, 2).images)


@dataclass(frozen=True, kw_only=True)
class Repeated(Attack[View, str]):
    """An attack of somebody else's: it says who has carried it out."""

    adversaries: ClassVar[tuple[type[View], ...]] = (ServerView, WorkerView)
    goal = "The name of the adversary."

    def lacks(self, view: View) -> str:
        return "it has no ears" if isinstance(view, ServerView) else ""

    def guess(self, view: View) -> str:
        return view.adversary * self.images

    def score(self, guess: str, truth: Truth) -> Sequence[Figure]:
        return [Figure(name="letters", value=len(guess), unit="")]


class Unfinished(Attack[View, str]):
    """It lacks its two halves."""


@dataclass(frozen=True, kw_only=True)
class Nameless(Repeated):
    """It names no adversary that exists."""

    adversaries: ClassVar[tuple[type[View], ...]] = (View,)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_names_its_adversaries_and_what_it_looks_for(name: str):
    attack = attack_of(name, images=5)
    assert attack.images == 5
    assert set(attack.adversaries) <= set(ADVERSARIES)
    assert attack.goal.endswith(".")
    assert dataclasses.is_dataclass(attack)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_types_of_an_attack_show_that_only_its_scoring_sees_the_truth(name: str):
    kind = type(attack_of(name, images=1))
    seen = {m: set(typing.get_type_hints(getattr(kind, m)).values()) for m in ("lacks", "guess")}
    assert Truth in typing.get_type_hints(kind.score).values()
    assert not any(Truth in kinds for kinds in seen.values())


def test_no_view_can_hold_a_key_or_the_truth():
    hints = [hint for view in ADVERSARIES for hint in typing.get_type_hints(view).values()]
    assert not {KeyHolder, Truth} & set(hints)


def test_what_is_true_is_not_shown_with_what_holds_it():
    shown = repr(Truth(keys={0: {"pixel_shuffling": torch.arange(3)}}))
    assert "tensor" not in shown


def test_an_adversary_without_what_an_attack_needs_is_told_why():
    workers = [
        WorkerView(public=KNOWN, client=client, images=None, labels=None) for client in range(3)
    ]
    views: dict[type[View], Sequence[View]] = {
        ServerView: [ServerView(public=KNOWN)],
        WorkerView: workers,
    }
    attacks = {"repeated": Repeated(images=2)}
    server, worker = audit(attacks, lambda kind: views[kind], Truth())
    assert (server.verdict, server.reason, server.figures) == (
        "not applicable",
        "it has no ears",
        (),
    )
    assert (worker.adversary, worker.victims, worker.figures[0].value) == ("worker", 3, 12)


def test_the_truth_is_opened_only_when_a_guess_is_scored():
    def fail(client: int) -> Any:
        raise AssertionError(client)

    true = Truth(keys=Opened(range(3), fail), owned=Opened(range(3), fail))
    view = OutsiderView(public=KNOWN)
    assert carry_out("repeated", Repeated(images=1), [view], true).figures[0].value == 8
    assert (len(true.keys), list(true.keys)) == (3, [0, 1, 2])
    with pytest.raises(KeyError):
        true.keys[3]


def figure(gain: float) -> Figure:
    return Figure(name=f"{gain}", value=50 + 50 * gain, floor=50, ceiling=100)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([1.0, WHOLE], "recovered"),
        ([1.0, WHOLE - 0.01], "partly"),
        ([0.0, PART], "partly"),
        ([PART - 0.01, -0.2], "not"),
        ([], "not"),
    ],
)
def test_the_verdict_follows_from_the_gains(gains: list[float], verdict: str):
    unjudged = Figure(name="rank", value=7, unit="")
    outcome = Outcome(attack="a", adversary="b", figures=[*map(figure, gains), unjudged])
    assert outcome.verdict == verdict


def test_an_error_that_falls_is_judged_as_a_share_that_rises():
    assert Figure(name="error", value=25, unit="", floor=100, ceiling=0).gain == 0.75
    assert Figure(name="none", value=100, floor=100, ceiling=100).gain == 0


def test_figures_of_several_victims_are_averaged_by_name():
    (mean,) = averaged([[figure(0.0)], [dataclasses.replace(figure(0.0), value=70, floor=60)]])
    assert (mean.value, mean.floor, mean.ceiling) == (60, 55, 100)


def test_an_attack_of_ones_own_is_named_by_its_class():
    assert attack_of("tests.attacks.test_contract:Repeated", images=3) == Repeated(images=3)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("tests.attacks.test_contract:Repeatd", "did you mean 'Repeated'"),
        ("tests.attacks.test_contract:Unfinished", "lacks the method guess, score"),
        ("tests.attacks.test_contract:Nameless", "must name its adversaries"),
        ("not_there:Mine", "cannot be imported"),
    ],
)
def test_what_is_no_attack_is_refused_in_one_line(name: str, told: str):
    with pytest.raises(UserError, match=told):
        attack_of(name, images=1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("spam", "did you mean 'span'"),
        ("span,", "unknown --only ''"),
        ("span,span", "span occurs twice"),
    ],
)
def test_names_of_attacks_are_read_with_care(text: str, told: str):
    with pytest.raises(UserError, match=told):
        read_attacks(text)
