"""A user's bounds on outcomes: what they name exists, and whatever breaks them is told."""

from __future__ import annotations

import math
import typing

import pytest

from fl_vitlora.attacks.bounds import broken, check_bounds
from fl_vitlora.attacks.results import Figure, Outcome, Verdict
from fl_vitlora.attacks.shelf import attack_of
from fl_vitlora.config.attack_bounds import VERDICTS, read_bounds
from fl_vitlora.config.attack_names import ATTACKS
from fl_vitlora.errors import UserError

OWN = "tests.attacks.test_contract:Repeated"
NAMES = (*ATTACKS, OWN)


def outcome(value: float, adversary: str = "worker") -> Outcome:
    figure = Figure(name="blocks put in their place", value=value, floor=0, ceiling=100)
    return Outcome(attack="second_order", adversary=adversary, figures=[figure])


SEALED = Outcome(attack="second_order", adversary="thief", reason="sealed")


def lines(bound: str, *outcomes: Outcome) -> list[str]:
    return broken(read_bounds([bound], NAMES), outcomes)


def test_every_verdict_has_a_place_in_the_order():
    assert {*VERDICTS, "out of time"} == set(typing.get_args(Verdict))


@pytest.mark.parametrize(
    ("comparison", "values"), [(">", [51]), (">=", [50, 51]), ("<", [49]), ("<=", [49, 50])]
)
def test_a_bound_is_broken_if_its_comparison_is_true(comparison: str, values: list[int]):
    bound = f"second_order.blocks put in their place {comparison} 50"
    assert [v for v in (49, 50, 51) if lines(bound, outcome(v))] == values


def test_a_line_names_the_bound_the_attack_the_adversary_and_what_was_found():
    bound = "second_order.blocks put in their place>50"
    assert lines(bound, outcome(100), SEALED, outcome(60, "thief")) == [
        f"--fail-if '{bound}': second_order, worker: blocks put in their place is 100.0 %",
        f"--fail-if '{bound}': second_order, thief: blocks put in their place is 60.0 %",
    ]


def test_a_bound_may_be_for_one_adversary():
    bound = "second_order/thief.blocks put in their place>50"
    assert lines(bound, outcome(100)) == []
    assert len(lines(bound, outcome(100), outcome(100, "thief"))) == 1


@pytest.mark.parametrize(
    ("bound", "found"),
    [
        ("verdict>=partly", ["partly", "recovered"]),
        ("second_order.verdict>partly", ["recovered"]),
        ("second_order.verdict<not", ["not applicable"]),
        ("second_order.verdict<=not applicable", ["not applicable"]),
        ("span.verdict>=not applicable", []),
    ],
)
def test_verdicts_are_compared_in_their_order(bound: str, found: list[str]):
    outcomes = [SEALED, outcome(0), outcome(50), outcome(100)]
    told = [line.rpartition("the verdict is ")[2] for line in lines(bound, *outcomes)]
    assert told == found


def test_what_cannot_be_judged_breaks_a_bound():
    bound = "second_order.blocks put in their place>50"
    assert "is nan" in lines(bound, outcome(math.nan))[0]
    bare = Outcome(attack="second_order", adversary="worker", figures=[])
    assert "has no figure blocks put in their place in this run" in lines(bound, bare)[0]


def test_an_attack_that_ran_out_of_time_breaks_every_bound_on_it():
    late = Outcome(
        attack="second_order", adversary="worker", reason="its budget ended", out_of_time=True
    )
    for bound in ("second_order.blocks put in their place>50", "verdict>recovered"):
        assert "not judged, because its budget ended" in lines(bound, late)[0]
    assert lines("span.verdict>=partly", late) == []


def test_names_with_dots_and_percents_are_read():
    (rate, own) = read_bounds(
        ["membership_loss.true positives at 0.1 % false ones>=1", f"{OWN}.letters < 3"], NAMES
    )
    assert (rate.attack, rate.figure) == (
        "membership_loss",
        "true positives at 0.1 % false ones",
    )
    assert (own.attack, own.figure, own.limit) == (OWN, "letters", 3)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_figures_of_every_attack_can_be_bound(name: str):
    attack = attack_of(name, images=1)
    assert attack.figures
    texts = [f"{name}.{figure}>1" for figure in attack.figures]
    bounds = read_bounds([*texts, f"{name}.verdict>not", "verdict>not"], NAMES)
    check_bounds(bounds, {name: attack})
    assert [bound.figure for bound in bounds[:-2]] == list(attack.figures)


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ("span.rank of an updat>3", "did you mean 'rank of an update'"),  # codespell:ignore
        ("span.verdicts>3", "did you mean 'verdict'"),
        ("span.>3", "unknown figure of span"),
        ("span/servr.verdict>not", "did you mean 'server'"),
        ("span/thief.verdict>not", "choices: server"),
        (f"{OWN}.letters>3", "declares no `figures`"),
    ],
)
def test_a_bound_on_what_no_attack_has_is_refused(bound: str, told: str):
    attacks = {name: attack_of(name, images=1) for name in NAMES}
    with pytest.raises(UserError, match=told):
        check_bounds(read_bounds([bound], NAMES), attacks)


def test_an_attack_that_declares_no_figures_may_have_a_bound_on_its_verdict():
    check_bounds(read_bounds([f"{OWN}.verdict>=partly"], NAMES), {OWN: attack_of(OWN, images=1)})
