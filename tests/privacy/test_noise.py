"""Differential privacy: bounded updates, noise of the promised size, one update for all.

The noise has fixed keys, so that no test depends on luck.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.privacy.noise import bounded, mean_update, released, repeatable_key, secret_key
from fl_vitlora.rng import generator
from fl_vitlora.state import State, add, l2_norm, scale, subtract, zip_map
from fl_vitlora.strategy import Update

KEY = bytes(range(32))
COHORT = 4


def state(seed: int, scalars: int = 6, size: float = 1.0) -> State:
    drawn = torch.randn(scalars, generator=generator(seed, "privacy")) * size
    return {"a": drawn[: scalars // 2].reshape(1, -1), "b": drawn[scalars // 2 :]}


def update(client: int, delta: State, report: State | None = None, samples: int = 10) -> Update:
    return Update(
        client=client,
        samples=samples,
        loss=float(client),
        delta=delta,
        report=report or {},
        steps=client + 1,
        population=9,
    )


def released_with(given_update: Update, noise_multiplier: float, key: bytes = KEY) -> Update:
    return released(
        given_update,
        cohort=COHORT,
        clipping_norm=2.0,
        noise_multiplier=noise_multiplier,
        key=key,
    )


def close(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-5, atol=1e-6)


# bounded updates


@given(seed=st.integers(0, 1000), most=st.floats(0.1, 10.0))
def test_delta_and_report_have_one_norm_together(seed: int, most: float):
    delta, report = state(seed), state(seed + 1)
    norm = math.hypot(l2_norm(delta), l2_norm(report))
    delta_out, report_out, within = bounded(delta, report, most)
    factor = min(1.0, most / norm)
    close(delta_out, scale(delta, factor))
    close(report_out, scale(report, factor))
    assert within == (norm <= most)


def test_a_delta_alone_is_bounded_alone():
    delta, report, within = bounded({"w": torch.tensor([3.0, 4.0])}, {}, 1.0)
    assert delta["w"].tolist() == pytest.approx([0.6, 0.8])
    assert report == {}
    assert not within


@given(seed=st.integers(0, 1000), size=st.sampled_from([0.1, 1.0, 100.0]))
def test_no_client_moves_the_mean_by_more_than_the_norm_over_the_cohort(seed: int, size: float):
    """The sensitivity that the noise is measured by."""
    parts = [bounded(state(seed + k, size=size), state(-seed - k), 2.0) for k in range(COHORT)]
    updates = [update(k, delta, report) for k, (delta, report, _) in enumerate(parts)]
    quiet = update(1, scale(parts[1][0], 0.0), scale(parts[1][1], 0.0))
    means = [
        released_with(mean_update(chosen, [1] * COHORT), noise_multiplier=0.0)
        for chosen in (updates, [updates[0], quiet, *updates[2:]])
    ]
    moved = [
        l2_norm(subtract(getattr(means[0], part), getattr(means[1], part)))
        for part in ("delta", "report")
    ]
    assert math.hypot(*moved) <= 2.0 / COHORT * (1 + 1e-5)


# the mean


def test_an_update_of_several_stands_for_all_of_them():
    updates = [update(k, state(k), state(k + 10), samples=n) for k, n in enumerate((30, 10, 60))]
    one = mean_update(updates, [u.samples for u in updates])
    close(one.delta, sum_of(updates, "delta", (0.3, 0.1, 0.6)))
    close(one.report, sum_of(updates, "report", (0.3, 0.1, 0.6)))
    assert (one.client, one.samples, one.members, one.population) == (-1, 100, 3, 9)
    assert one.loss == pytest.approx(0.1 * 1 + 0.6 * 2)
    assert one.steps == round(0.3 * 1 + 0.1 * 2 + 0.6 * 3)


def sum_of(updates: list[Update], part: str, weights: tuple[float, ...]) -> State:
    states = [scale(getattr(u, part), p) for u, p in zip(updates, weights, strict=True)]
    return add(add(states[0], states[1]), states[2])


# the noise


@pytest.mark.parametrize("noise_multiplier", [0.5, 3.0])
def test_the_noise_has_the_standard_deviation_that_was_promised(noise_multiplier: float):
    """z·C/K in every scalar; over n of them, within 4 / √(2n) of it."""
    scalars = 50_000
    silent = update(-1, state(0, scalars, size=0.0), state(0, scalars, size=0.0))
    noisy = released_with(replace(silent, members=COHORT), noise_multiplier)
    promised = noise_multiplier * 2.0 / COHORT
    for part in (*noisy.delta.values(), *noisy.report.values()):
        drawn = part.double()
        assert float(drawn.std()) == pytest.approx(promised, rel=4 / math.sqrt(scalars))
        assert abs(float(drawn.mean())) < 4 * promised / math.sqrt(scalars / 2)


def test_no_two_tensors_have_the_same_noise():
    silent = update(-1, state(0, size=0.0), state(0, size=0.0))
    noisy = released_with(silent, noise_multiplier=1.0)
    drawn = torch.cat([t.reshape(-1) for t in (*noisy.delta.values(), *noisy.report.values())])
    assert len(set(drawn.tolist())) == len(drawn) == 12


def test_noise_is_added_to_the_mean_and_does_not_depend_on_it():
    one, other = (mean_update([update(k, state(k))], [1]) for k in (0, 1))
    noises = [
        zip_map(
            lambda noisy, plain: noisy - plain / COHORT,
            released_with(mean, noise_multiplier=1.0).delta,
            mean.delta,
        )
        for mean in (one, other)
    ]
    close(noises[0], noises[1])


def test_without_noise_and_with_all_there_it_is_the_mean_of_equal_weights():
    updates = [update(k, state(k), samples=10 + k) for k in range(COHORT)]
    mean = mean_update(updates, [1] * COHORT)
    assert released_with(mean, noise_multiplier=0.0).delta["b"].tolist() == mean.delta["b"].tolist()


def test_who_is_absent_counts_as_a_zero():
    """Else the noise on a mean of few would have to be larger."""
    present = [update(k, state(k)) for k in range(COHORT - 1)]
    everybody = [*present, update(9, state(0, size=0.0))]
    means = [
        released_with(mean_update(chosen, [1] * len(chosen)), noise_multiplier=0.0)
        for chosen in (present, everybody)
    ]
    close(means[0].delta, means[1].delta)
    assert means[0].members == COHORT - 1


def test_losses_are_not_made_private():
    mean = mean_update([update(k, state(k)) for k in range(COHORT)], [1] * COHORT)
    assert released_with(mean, noise_multiplier=5.0).loss == mean.loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_noise_keeps_the_type(dtype: torch.dtype):
    mean = update(-1, {"w": torch.zeros(3, dtype=dtype)})
    assert released_with(mean, noise_multiplier=1.0).delta["w"].dtype == dtype


def test_the_key_of_a_simulation_repeats_and_that_of_a_deployment_does_not():
    mean = mean_update([update(k, state(k)) for k in range(COHORT)], [1] * COHORT)

    def noisy(key: bytes) -> list[float]:
        assert len(key) == 32
        drawn: list[float] = released_with(mean, 1.0, key).delta["b"].tolist()
        return drawn

    assert noisy(repeatable_key(7)(1)) == noisy(repeatable_key(7)(1))
    others = [repeatable_key(7)(2), repeatable_key(8)(1), secret_key(1), secret_key(1)]
    assert len({tuple(noisy(key)) for key in (repeatable_key(7)(1), *others)}) == 5
