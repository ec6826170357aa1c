"""ε against sums done by hand, and against the exact answer, which it may not fall below."""

from __future__ import annotations

import json
import math
import sys

import pytest

from fl_vitlora.config import PrivacyConfig
from fl_vitlora.errors import UserError
from fl_vitlora.flower.strategies.accounting import epsilon, noise_for, statement, with_chosen_noise

ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(11, 64)) + [128, 256, 512, 1024]
CASES = [(0.5, 1, 1e-5), (1.0, 20, 1e-5), (2.0, 20, 1e-3), (5.0, 100, 1e-6), (30.0, 3, 1e-5)]


def by_hand(z: float, rounds: int, delta: float) -> float:
    """Minimum over orders α of T·α/(2z²) + ln(1 - 1/α) - ln(δα)/(α - 1)."""
    return min(
        rounds * a / (2 * z * z) + math.log(1 - 1 / a) - math.log(delta * a) / (a - 1)
        for a in ORDERS
    )


def exact_delta(z: float, rounds: int, eps: float) -> float:
    """δ of T Gaussian releases, which are one with μ = √T / z (Balle and Wang, theorem 8)."""
    mu = math.sqrt(rounds) / z

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - eps / mu) - math.exp(eps) * phi(-mu / 2 - eps / mu)


@pytest.mark.parametrize(("z", "rounds", "delta"), CASES)
def test_epsilon_is_that_of_the_formula(z: float, rounds: int, delta: float):
    found = epsilon(noise_multiplier=z, releases=rounds, delta=delta)
    assert found == pytest.approx(by_hand(z, rounds, delta), rel=1e-9)


@pytest.mark.parametrize(("z", "rounds", "delta"), CASES)
def test_epsilon_is_above_the_exact_one_and_not_far(z: float, rounds: int, delta: float):
    found = epsilon(noise_multiplier=z, releases=rounds, delta=delta)
    assert exact_delta(z, rounds, found) <= delta
    assert exact_delta(z, rounds, 0.8 * found) > delta


def test_more_noise_costs_less_and_more_rounds_cost_more():
    base = epsilon(noise_multiplier=1.0, releases=10, delta=1e-5)
    assert epsilon(noise_multiplier=1.1, releases=10, delta=1e-5) < base
    assert epsilon(noise_multiplier=1.0, releases=11, delta=1e-5) > base
    assert epsilon(noise_multiplier=1.0, releases=10, delta=1e-4) < base


def test_without_noise_there_is_no_privacy():
    assert epsilon(noise_multiplier=0.0, releases=1, delta=1e-5) == math.inf


def test_a_statement_can_be_written_down():
    told = statement(PrivacyConfig(clipping_norm=0.5, noise_multiplier=1.0), releases=20)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told == {
        "epsilon": pytest.approx(by_hand(1.0, 20, 1e-5)),
        "delta": 1e-5,
        "releases": 20,
        "accountant": "rdp",
        "noise_multiplier": 1.0,
        "clipping_norm": 0.5,
    }


@pytest.mark.parametrize("norm", [None, 0.5])
def test_nothing_is_stated_where_nothing_is_promised(norm: float | None):
    assert statement(PrivacyConfig(clipping_norm=norm), releases=20) is None


def test_who_lacks_the_package_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[privacy\]'"):
        epsilon(noise_multiplier=1.0, releases=1, delta=1e-5)


TARGETS = [(0.1, 1, 1e-5), (1.0, 20, 1e-5), (8.0, 20, 1e-3), (50.0, 3, 1e-6), (3.0, 1000, 1e-5)]


@pytest.mark.parametrize(("target", "rounds", "delta"), TARGETS)
def test_a_target_chooses_the_least_noise_that_keeps_it(target: float, rounds: int, delta: float):
    """By the formula: the noise keeps the target, and a thousandth less of it does not."""
    z = noise_for(target=target, releases=rounds, delta=delta)
    assert by_hand(z, rounds, delta) <= target
    assert by_hand(0.999 * z, rounds, delta) > target


@pytest.mark.parametrize(("target", "rounds", "delta"), TARGETS)
def test_the_noise_that_is_chosen_keeps_the_target_exactly_too(
    target: float, rounds: int, delta: float
):
    assert exact_delta(noise_for(target=target, releases=rounds, delta=delta), rounds, target) < (
        delta
    )


@pytest.mark.parametrize(("target", "delta", "why"), [(1e-6, 1e-12, "larger"), (1e9, 0.1, "small")])
def test_a_target_that_no_noise_gives_is_refused(target: float, delta: float, why: str):
    with pytest.raises(UserError, match=rf"^privacy\.target_epsilon [^\n]+ {why}[^\n]+$"):
        noise_for(target=target, releases=20, delta=delta)


def test_what_was_chosen_is_written_down_beside_the_target():
    asked = PrivacyConfig(clipping_norm=0.5, target_epsilon=8.0)
    chosen = with_chosen_noise(asked, 20)
    told = statement(chosen, releases=20)
    assert told is not None
    assert told["target_epsilon"] == 8.0
    assert told["noise_multiplier"] == chosen.noise_multiplier == pytest.approx(2.85, abs=0.05)
    assert 7.99 < told["epsilon"] <= 8.0
    assert with_chosen_noise(PrivacyConfig(clipping_norm=0.5), 20).noise_multiplier == 0
