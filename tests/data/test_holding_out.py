"""What is held out has the same share of every class, and nobody trains on it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.config import DataConfig
from fl_vitlora.data.holding_out import hold_out, hold_out_of_each, stratified
from fl_vitlora.errors import UserError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=80)


@given(labels=LABELS, count=st.integers(0, 100), seed=st.integers(0, 9))
def test_every_class_has_its_share_but_for_less_than_one_image(
    labels: list[int], count: int, seed: int
):
    given_labels = np.array(labels, dtype=np.int64)
    drawn = stratified(given_labels, count, seed)
    assert len(drawn) == min(count, len(labels))
    assert (np.diff(drawn) > 0).all()  # each once, in order
    for label in set(labels):
        exact = len(drawn) * labels.count(label) / len(labels)
        assert abs((given_labels[drawn] == label).sum() - exact) < 1


def test_the_seed_draws_the_images():
    labels = np.repeat(np.arange(3), 50)
    draws = [stratified(labels, 30, seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_every_image_is_drawn_about_equally_often():
    labels = np.array([0] * 12 + [1] * 8)
    times = np.zeros(20)
    for seed in range(500):
        times[stratified(labels, 5, seed)] += 1
    assert (times > 80).all()  # 125 each, standard deviation 9.7
    assert (times < 170).all()


def test_a_class_of_one_image_keeps_it_for_training():
    labels = np.array([0] * 10 + [1, 2])
    for seed in range(20):
        assert set(labels[stratified(labels, 3, seed, keep_one=True)]) == {0}


@pytest.mark.parametrize(("fraction", "held"), [(0.1, 20), (0.255, 51), (0.0001, 1)])
def test_a_share_of_all_images_is_held_out_and_is_the_same_in_every_run(fraction: float, held: int):
    labels = np.repeat(np.arange(4), 50)
    trained, (validation,) = hold_out(labels, DataConfig(validation_fraction=fraction))
    assert len(validation) == held
    assert np.array_equal(np.sort(np.concatenate([trained, validation])), np.arange(200))
    again = hold_out(labels, DataConfig(validation_fraction=fraction))[1][0]
    assert np.array_equal(validation, again)


def test_each_client_holds_out_a_share_of_its_own_images():
    labels = np.random.default_rng(0).integers(0, 4, size=100)
    parts = [np.arange(60, 100), np.arange(20, 55), np.array([3, 1, 2])]
    trained, validation = hold_out_of_each(labels, parts, DataConfig(validation_fraction=0.2), 5)
    assert [len(part) for part in validation] == [8, 7, 1]
    for part, own, held in zip(parts, trained, validation, strict=True):
        assert sorted([*own, *held]) == sorted(part)
        assert own.tolist() == [position for position in part if position not in held]
    other = hold_out_of_each(labels, parts, DataConfig(validation_fraction=0.2), 6)[1]
    assert not np.array_equal(validation[0], other[0])


def test_a_client_that_would_have_too_few_images_left_is_refused():
    config = DataConfig(validation_fraction=0.5, min_samples=3)
    with pytest.raises(UserError, match=r"a client has 4 images; without 2 images for validation"):
        hold_out_of_each(np.zeros(10, dtype=np.int64), [np.arange(6), np.arange(6, 10)], config, 0)
