"""The figures of attacks that distinguish members from other images.

Members are images on which a client has trained. A membership attack is most dangerous for the few
images about which it is certain. Therefore the figures are the area under the curve, and the true
positive rate at small false positive rates.

Source: Carlini et al., S&P 2022 (true positive rate at small false positive rates).

Letters in shapes: M candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fl_vitlora.attacks.results import Figure

FALSE_POSITIVES = (0.01, 0.001)
FIGURES = (
    "area under the curve",
    *(f"true positives at {100 * rate:g} % false ones" for rate in FALSE_POSITIVES),
)
FEWEST = 200  # fewest candidates; with fewer, chance alone would find many members


def lacks_candidates(labels: Tensor) -> str:
    """Returns why there are not enough candidates; empty if there are enough.

    Args:
        labels: The labels of the candidates, (M,).
    """
    if not len(labels):
        return "clients keep parts of the model, or the strategy changed its frozen weights"
    few = f"it needs {FEWEST} candidates, and {len(labels)} are at hand"
    return few if len(labels) < FEWEST else ""


def membership_figures(scores: Tensor, trained_on: Tensor) -> list[Figure]:
    """Returns the area under the curve, and the rates at small false positive rates.

    Args:
        scores: The score of each candidate, (M,); members should have larger scores.
        trained_on: True for the members, bool (M,).
    """
    members, others = scores[trained_on], scores[~trained_on]
    area = 100 * area_under_curve(members, others)
    return [
        Figure(name=FIGURES[0], value=area, floor=50, ceiling=100),
        *(
            Figure(
                name=name,
                value=100 * true_positives(members, others, rate),
                floor=100 * chance_of(rate, len(others)),
                ceiling=100,
            )
            for name, rate in zip(FIGURES[1:], FALSE_POSITIVES, strict=True)
        ),
    ]


def area_under_curve(members: Tensor, others: Tensor) -> float:
    """Returns the probability that a member has a larger score than another image.

    Example:
        >>> area_under_curve(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0]))
        0.75
    """
    ordered = others.sort().values
    below = torch.searchsorted(ordered, members, right=False)
    not_above = torch.searchsorted(ordered, members, right=True)
    return float((below + not_above).double().mean() / 2 / len(others))


def chance_of(rate: float, others: int) -> float:
    """Returns the expected result of `true_positives` if members do not differ from other images.

    The result is more than the rate, because the threshold is one of finitely many scores.

    Example:
        >>> chance_of(0.01, 999)
        0.01
    """
    return (int(rate * others) + 1) / (others + 1)


def true_positives(members: Tensor, others: Tensor, rate: float) -> float:
    """Returns the true positive rate at a given false positive rate.

    The true positive rate is the share of members whose score is above a threshold. The threshold
    is the smallest score that at most the share `rate` of the other images exceeds.

    Args:
        members: The scores of members.
        others: The scores of images that are not members.
        rate: The largest share of the other images above the threshold, in [0, 1).

    Example:
        >>> true_positives(torch.tensor([3.0, 1.5]), torch.tensor([2.0, 1.0, 0.0, 0.0]), 0.25)
        1.0
    """
    threshold = others.sort(descending=True).values[int(rate * len(others))]
    return float((members > threshold).double().mean())
