"""Whether a run learns at all: told after its first rounds, so that nobody waits for its end.

K classes. Who always says how frequent each class is has a cross-entropy of their entropy H, which
is log K where all are equally frequent, and an accuracy of the most frequent class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.config.rates import rates_of

ROUNDS = 3  # that are looked at together; the first rounds of any run may be bad
NEAR = 0.99  # of the loss of guessing: no better than this is not learning
LEARNT = (
    0.25  # of the way from guessing to perfect: with so much accuracy a high loss is confidence
)
CLEARLY_ABOVE = 1.05  # of log K: steps that are too long, not too short


def guesses(rounds: Sequence[tuple[float | None, float]], shares: Sequence[float]) -> bool:
    """Returns True if the last rounds are no better than guessing.

    They are if each of the last three has a loss of log K or more, or of H or more without
    falling; a loss that is not a number counts as such. Where accuracy is clearly above guessing a
    run learns, whatever its loss; where the loss is not known, accuracy alone decides.

    Args:
        rounds: Test loss, if it is known, and test accuracy of every round so far.
        shares: Of the K classes in the test images, or 1 / K each where they are not known.

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
    """Says that a run does not learn, and what to try; once in a run.

    Args:
        lines: Rounds so far, as in `rounds.jsonl`.
        config: The experiment.
        shares: As `guesses` takes them.

    Returns:
        A sentence, or None where there is nothing to say, or it was said.
    """
    rounds = [(line["loss"], line["accuracy"]) for line in lines]
    if any(line.get("warnings") for line in lines) or not guesses(rounds, shares):
        return None
    loss, accuracy = rounds[-1]
    number, classes = lines[-1]["round"], len(shares)
    known = "unknown" if loss is None else f"{loss:.3g}"
    return (
        f"the model does not learn: after round {number} the test loss is {known}, and was no "
        f"better than guessing among {classes} classes ({math.log(classes):.3g}) for {ROUNDS} "
        f"rounds, accuracy {100 * accuracy:.1f} %, with learning rate "
        f"{config.training.learning_rate:g}; try {_advice(loss, config, classes)}"
    )


def _advice(loss: float | None, config: Config, classes: int) -> str:
    """Names a rate that may train the model."""
    rate, default = config.training.learning_rate, rates_of(config.model.name).learning_rate
    if rate != default:
        return f"this model's default rate: --set training.learning_rate={default:g}"
    lower = f"a lower rate: --set training.learning_rate={rate / 10:g}"
    if loss is None or not loss <= CLEARLY_ABOVE * math.log(classes):
        return lower
    return f"{lower}, a higher one, or more local steps: --set training.epochs=2"


def class_shares(labels: Tensor | None, classes: int) -> list[float]:
    """Returns the share of each class in test images, equal ones where labels are not known.

    Example:
        >>> class_shares(torch.tensor([0, 1, 1, 1]), 2), class_shares(None, 2)
        ([0.25, 0.75], [0.5, 0.5])
    """
    if labels is None or not len(labels):
        return [1 / classes] * classes
    counts = torch.bincount(labels, minlength=classes).tolist()
    return [count / len(labels) for count in counts]
