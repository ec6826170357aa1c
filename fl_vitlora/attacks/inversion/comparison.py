"""Compares guessed images with the images of a client, and compares other images in the same way.

Letters in shapes: B guessed images, n images of the client, m other images, C channels, H × W
pixels.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fl_vitlora.attacks.similarity import mean_error, structural_similarity

JUDGED = 64  # images of a client with which guesses are compared


def likeness(guesses: Tensor, own: Tensor) -> tuple[float, float]:
    """Returns how similar guessed images are to the images of a client.

    Each guess is compared with one image of the client, and no image is compared twice. The guesses
    and images are paired in the way that gives the largest similarity.

    Args:
        guesses: The guessed images, (B, C, H, W), with pixels in [0, 255].
        own: The images of the client, (n, C, H, W). At most `JUDGED` of them are used.

    Returns:
        A pair: the mean structural similarity, and the mean absolute error of a pixel.

    Example:
        >>> images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
        >>> likeness(images.flip(0), images)
        (1.0, 0.0)
    """
    own = own[:JUDGED]
    table = torch.stack([structural_similarity(guess.expand(own.shape), own) for guess in guesses])
    rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
    errors = mean_error(guesses[rows], own[columns])
    return float(table[rows, columns].mean()), float(errors.mean())


def of_same_classes(classes: Tensor, others: Tensor, labels: Tensor, number: int) -> Tensor:
    """Returns other images of given classes, (B, C, H, W).

    Args:
        classes: The classes, int64 (B,).
        others: The images to choose from, (m, C, H, W).
        labels: The classes of `others`, int64 (m,); empty if they are not known. If `others` has no
            image of a class, images of any class are used instead.
        number: A number from 0. Another number gives other images of the classes if there are any.

    Example:
        >>> images = torch.arange(3.0).reshape(3, 1, 1, 1)
        >>> of_same_classes(torch.tensor([5]), images, torch.tensor([5, 4, 5]), 1).flatten()
        tensor([2.])
    """
    chosen, taken = list[int](), dict[int, int]()
    for wanted in classes.tolist():
        same = (labels == wanted).nonzero().flatten().tolist() or list(range(len(others)))
        place = number * len(classes) + taken.get(wanted, 0)
        chosen.append(same[place % len(same)])
        taken[wanted] = taken.get(wanted, 0) + 1
    return others[chosen]
