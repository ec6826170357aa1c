"""A run that does not learn is told from one that does, by its first rounds."""

from __future__ import annotations

import math
import re

import pytest
import torch

from fl_vitlora.config import load
from fl_vitlora.federation.learning import class_shares, guesses, warning

TEN = [0.1] * 10
NAN = float("nan")


def rounds(*losses: float | None, accuracy: float = 0.1) -> list[tuple[float | None, float]]:
    return [(loss, accuracy) for loss in losses]


@pytest.mark.parametrize(
    ("seen", "shares", "expected"),
    [
        (rounds(2.4, 2.5, 2.31), TEN, True),
        (rounds(9.0, 5.0, 2.4), TEN, True),  # falls, and is still above log 10
        (rounds(2.30, 2.30, 2.295), TEN, True),  # a model that says the same of every image
        (rounds(2.30, 2.25, 2.1), TEN, False),  # learns slowly
        (rounds(2.4, 2.5, 2.2), TEN, False),
        (rounds(2.4, 2.5), TEN, False),  # too early to tell
        (rounds(2.0, 1.5, 2.4, 2.5, 2.6), TEN, True),  # learnt, and fell back
        (rounds(2.0, 2.4, 2.5), TEN, False),
        (rounds(3.0, 3.2, 3.1, accuracy=0.6), TEN, False),  # overconfident, and learns
        (rounds(NAN, NAN, NAN), TEN, True),
        (rounds(math.inf, NAN, 1e30), TEN, True),
        (rounds(None, None, None), TEN, True),  # accuracy alone
        (rounds(None, None, None, accuracy=0.3), TEN, False),
        (rounds(0.7, 0.7, 0.69, accuracy=0.5), [0.5, 0.5], True),
        (rounds(0.33, 0.33, 0.33, accuracy=0.9), [0.9, 0.1], True),  # always the frequent class
        (rounds(0.5, 0.42, 0.36, accuracy=0.9), [0.9, 0.1], False),  # on its way down
        (rounds(0.2, 0.2, 0.2, accuracy=0.95), [0.9, 0.1], False),
        (rounds(5.0, 5.0, 5.0), [1.0], False),  # one class: nothing to learn
        (rounds(5.0, 5.0, 5.0), [], False),
    ],
)
def test_guessing_is_told_from_learning(
    *, seen: list[tuple[float | None, float]], shares: list[float], expected: bool
):
    assert guesses(seen, shares) == expected


def lines(*losses: float) -> list[dict[str, object]]:
    return [{"round": n + 1, "loss": loss, "accuracy": 0.1} for n, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("settings", "losses", "advice"),
    [
        ({"training.learning_rate": 3}, (9, 8, 7), "default rate: .*learning_rate=0.02"),
        ({}, (9, 8, 7), r"a lower rate: --set training.learning_rate=0.002$"),
        ({}, (2.3, 2.3, 2.3), "a higher rate, or more local steps"),
        (
            {"model.name": "vit_small_patch16_224", "training.learning_rate": 2e-2},
            (2.5, 2.4, 2.4),
            "default rate: --set training.learning_rate=0.0005",
        ),
        ({}, (NAN, NAN, NAN), "a lower rate"),
    ],
)
def test_the_warning_names_rate_loss_and_what_to_try(
    settings: dict[str, object], losses: tuple[float, ...], advice: str
):
    config = load(None, settings)
    told = warning(lines(*losses), config, TEN)
    assert told is not None
    assert f"learning rate {config.training.learning_rate:g}" in told
    assert "the accuracy 10.0 %; for 3 rounds" in told
    assert "no better than guessing among 10 classes (loss 2.3)" in told
    assert re.search(advice, told)


def test_it_is_said_once():
    seen = lines(9, 9, 9)
    assert warning(seen, load(None), TEN)
    seen[-1]["warnings"] = ["told"]
    assert warning([*seen, *lines(9)], load(None), TEN) is None


def test_rounds_that_were_not_evaluated_are_not_judged():
    """Three evaluated rounds are needed, however many rounds lie between them."""
    config = load(None, {"evaluation.every": 2})
    unmeasured = {"round": 1, "accuracy": None, "loss": None}
    seen = [line for one in lines(9, 9) for line in (unmeasured, one)]
    assert warning([*seen, unmeasured], config, TEN) is None
    last = {**lines(9)[0], "round": 6, "measured_on": "validation"}
    told = warning([*seen, unmeasured, last], config, TEN)
    assert told is not None
    assert "after round 6, " in told
    assert "the validation loss is 9 and" in told
    assert "for 3 evaluated rounds" in told


def test_shares_are_those_of_the_test_images_or_equal():
    assert class_shares(torch.tensor([0, 2, 2, 2]), 3) == [0.25, 0, 0.75]
    assert class_shares(None, 4) == [0.25] * 4
