"""Waiting for replies: few looks while workers train, and no late one at the end of a round."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.federation.polling import LEAST_SECONDS, LOOKS, MOST_SECONDS, pause

EVERY = LEAST_SECONDS  # how often a server looks that does not adapt
SIZES = [142, 137, 114, 112, 99, 91, 83, 63, 61, 59, 59, 54, 53, 52, 51, 51, 49, 44, 41, 22]


def train(sizes: Sequence[int], workers: int, seconds: float) -> list[tuple[float, int]]:
    """Lets workers train clients in turn, the largest first; when each is done, and its images."""
    free, done = [0.0] * workers, []
    for images in sorted(sizes, reverse=True):
        begin = min(free)
        free[free.index(begin)] = begin + images * seconds
        done.append((begin + images * seconds, images))
    return sorted(done)


def look(done: Sequence[tuple[float, int]]) -> tuple[int, float]:
    """Looks for replies until all are there: how often, and how late the last one was found."""
    total, elapsed, looks = sum(images for _, images in done), 0.0, 0
    last, before = 0.0, 0
    while True:
        looks += 1
        answered = sum(images for at, images in done if at <= elapsed)
        if answered == total:
            return looks, elapsed - done[-1][0]
        last, before = (elapsed if answered > before else last), answered
        elapsed += pause(elapsed, 0.0, last=last, answered=answered, awaited=total - answered)


@given(
    sizes=st.lists(st.integers(5, 200), min_size=8, max_size=30),
    workers=st.integers(1, 4),
    seconds=st.floats(2e-4, 2e-2),
)
def test_a_round_is_looked_at_rarely_and_its_end_is_not_missed(
    sizes: list[int], workers: int, seconds: float
):
    done = train(sizes, workers, seconds)
    looks, late = look(done)
    assert 0 <= late <= min(MOST_SECONDS, max(LEAST_SECONDS, 0.1 * done[-1][0]))
    assert looks <= 20 + done[-1][0] / EVERY / 2


def test_rounds_of_the_default_job_are_looked_at_a_third_as_often_and_end_no_later():
    """On the mean: whoever looks at fixed times is late by half of the time between them."""
    rounds = [train(SIZES, 2, seconds) for seconds in np.linspace(1.3e-3, 2.6e-3, 50)]
    looks, late = zip(*map(look, rounds), strict=True)
    assert sum(looks) < sum(done[-1][0] for done in rounds) / EVERY / 3
    assert fmean(late) < 0.6 * EVERY


@given(st.floats(0, 1e4), st.floats(0, 10), st.integers(0, 10**6), st.integers(1, 10**6))
def test_no_pause_is_too_short_or_too_long(
    elapsed: float, looked: float, answered: int, awaited: int
):
    found = pause(elapsed, looked, last=elapsed / 2, answered=answered, awaited=awaited)
    assert max(LEAST_SECONDS, LOOKS * looked) <= found <= max(MOST_SECONDS, LOOKS * looked)


@pytest.mark.parametrize(("answered", "expected"), [(1, 0.05), (9, 0.025), (19, 0.01)])
def test_looks_become_more_frequent_towards_the_end(answered: int, expected: float):
    found = pause(0.9, 0.0, last=0.9, answered=answered, awaited=1)
    assert found == pytest.approx(expected, rel=0.2)
