"""Checks in the first rounds whether a run learns, and warns the user if it does not learn.

K is the number of classes. A model that always predicts the frequencies of the classes has the
cross-entropy H, which is the entropy of these frequencies. H is log K if all classes are equally
frequent. If a model always predicts the most frequent class, its accuracy is the share of this
class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.config.rates import rates_of

ROUNDS = 3  # the number of rounds that are checked together, because one early round may be bad
NEAR = 0.99  # a loss above this share of the loss of guessing means that the run does not learn
LEARNT = 0.25  # a run learns if its accuracy is this share of the way from guessing to perfect
CLEARLY_ABOVE = 1.05  # a loss above 1.05 · log K means that the learning rate is too high


def guesses(rounds: Sequence[tuple[float | None, float]], shares: Sequence[float]) -> bool:
    """Returns True if the last rounds are no better than guessing.

    The function uses the last three rounds. These rounds are no better than guessing in two cases:
    if the loss of each round is about log K or higher, or if each loss is about H or higher and the
    losses do not fall. K is the number of classes, and H is the entropy of their shares. A loss of
    NaN counts as infinite. If the accuracy is clearly higher than the accuracy of guessing, the
    result is always False. If the loss is unknown, only the accuracy is used.

    Args:
        rounds: The loss and the accuracy of every round so far that was evaluated. An unknown loss
            is None.
        shares: The share of each of the K classes in the images of the evaluation; 1 / K if the
            share is unknown.

    Example:
        >>> guesses([(2.4, 0.1), (2.35, 0.12), (2.31, 0.1)], [0.1] * 10)
        True
        >>> guesses([(2.4, 0.1), (2.35, 0.12), (2.1, 0.2)], [0.1] * 10)
        False
    """
    last = rounds[-ROUNDS:]
    if len(last) < ROUNDS or len(shares) < 2:
        return False
    chance = max(shares)
    if any(accuracy > chance + LEARNT * (1 - chance) for _, accuracy in last):
        return False
    if any(loss is None for loss, _ in last):
        near = min(1.5 * chance, chance + 0.05)
        return all(accuracy <= near for _, accuracy in last)
    losses = [math.inf if loss is None or math.isnan(loss) else loss for loss, _ in last]
    above = min(losses) >= NEAR * math.log(len(shares))
    entropy = -sum(share * math.log(share) for share in shares if share)
    stays = min(losses) >= NEAR * entropy and losses[-1] >= NEAR * losses[0]
    return above or stays


def warning(
    lines: Sequence[Mapping[str, Any]], config: Config, shares: Sequence[float]
) -> str | None:
    """Returns a warning with advice if the run does not learn. A run gets at most one warning.

    Args:
        lines: The lines of `rounds.jsonl` so far, one for each round.
        config: The configuration of the experiment.
        shares: The share of each of the K classes in the images of the evaluation; 1 / K if the
            share is unknown.

    Returns:
        The warning; None if the run learns, or if the run has already got the warning.
    """
    rounds = [(line["loss"], line["accuracy"]) for line in lines if line["accuracy"] is not None]
    if any(line.get("warnings") for line in lines) or not guesses(rounds, shares):
        return None
    loss, accuracy = rounds[-1]
    number, classes = lines[-1]["round"], len(shares)
    images = lines[-1].get("measured_on") or "test"
    evaluated = "evaluated " if config.evaluation.every > 1 else ""
    known = "unknown" if loss is None else f"{loss:.3g}"
    return (
        f"the model does not learn: after round {number}, with learning rate "
        f"{config.training.learning_rate:g}, the {images} loss is {known} and the accuracy "
        f"{100 * accuracy:.1f} %; for {ROUNDS} {evaluated}rounds the model was no better than "
        f"guessing among {classes} classes (loss {math.log(classes):.3g}); try "
        f"{_advice(loss, config, classes)}"
    )


def _advice(loss: float | None, config: Config, classes: int) -> str:
    """Returns the end of the warning, with advice about the learning rate."""
    rate, default = config.training.learning_rate, rates_of(config.model.name).learning_rate
    if rate != default:
        return f"this model's default rate: --set training.learning_rate={default:g}"
    lower = f"a lower rate: --set training.learning_rate={rate / 10:g}"
    if loss is None or not loss <= CLEARLY_ABOVE * math.log(classes):
        return lower
    return f"{lower}, a higher rate, or more local steps: --set training.epochs=2"


def class_shares(labels: Tensor | None, classes: int) -> list[float]:
    """Returns the share of each class in some images; without labels, all shares are equal.

    Example:
        >>> class_shares(torch.tensor([0, 1, 1, 1]), 2), class_shares(None, 2)
        ([0.25, 0.75], [0.5, 0.5])
    """
    if labels is None or not len(labels):
        return [1 / classes] * classes
    counts = torch.bincount(labels, minlength=classes).tolist()
    return [count / len(labels) for count in counts]
