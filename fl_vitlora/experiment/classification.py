"""Makes the classification report of a run, which explains the accuracy of the final model.

If a central party evaluates the model, the report has precision, recall and F1 of each class, the
confusion matrix, and the calibration. If the clients evaluate the model, the server knows only each
client's accuracy, and the report says how the accuracy differs between the clients.

Letters in shapes: n images, L classes, K clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.experiment.details import Details
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.training.decisions import Decisions

Matrix = NDArray[np.int64]
Part = dict[str, Any]

BINS = 15  # the number of bins in the paper of Guo et al.
MOST_CLASSES = 100  # the largest number of classes whose confusion matrix is in `result.json`
WORST_SHARE = 10  # the worst clients are one tenth (1 / WORST_SHARE) of all clients


def report_of(details: Details, classes: int) -> Part:
    """Returns the entries of `result.json` about classes, calibration and clients.

    Args:
        details: The details of the evaluation of the last model.
        classes: The number L of classes.

    Returns:
        A dictionary with the entries `classification` and `client_accuracy`. The first entry
        is None without decisions of a central party, the second without answers of clients.
    """
    known, answers = details.decisions, details.answers
    return {
        "classification": None if known is None else of_classes(known, classes),
        "client_accuracy": of_clients(answers) if answers else None,
    }


def of_classes(decisions: Decisions, classes: int) -> Part:
    """Returns the figures of each class, the macro F1, the confusion matrix and the calibration.

    With the true positives TP, false positives FP and false negatives FN of a class, the figures
    are

        precision = TP / (TP + FP),   recall = TP / (TP + FN),   F1 = 2 TP / (2 TP + FP + FN)

    A figure whose denominator is 0 is None. The macro F1 is the mean of F1 over the classes that
    have test images.

    Args:
        decisions: The model's decisions for the n test images.
        classes: The number L of classes.

    Returns:
        A dictionary. The lists `precision`, `recall`, `f1` and `support` have an entry for each
        class; the support is the number of images of the class. Row i of the confusion matrix
        counts the images of class i. Column j counts the images that the model assigns to class j.
    """
    from sklearn.metrics import precision_recall_fscore_support  # this import takes a second

    labels, chosen = decisions.labels.numpy(), decisions.chosen.numpy()
    figures = precision_recall_fscore_support(
        labels, chosen, labels=np.arange(classes), zero_division=np.nan
    )
    precision, recall, f1 = ([_known(value) for value in column] for column in figures[:3])
    present = [value for value, images in zip(f1, figures[3], strict=True) if images]
    matrix = confusion(decisions, classes)
    return {
        "images": len(labels),
        "macro_f1": math.fsum(value for value in present if value) / len(present),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "support": figures[3].tolist(),
        "confusion_matrix": matrix.tolist() if classes <= MOST_CLASSES else None,
        "calibration": calibration(decisions),
    }


def confusion(decisions: Decisions, classes: int) -> Matrix:
    """Returns the confusion matrix, whose entry (i, j) counts images of class i assigned to j.

    Args:
        decisions: The model's decisions for the n test images.
        classes: The number L of classes.
    """
    from sklearn.metrics import confusion_matrix

    matrix: Matrix = confusion_matrix(
        decisions.labels.numpy(), decisions.chosen.numpy(), labels=np.arange(classes)
    )
    return matrix


def calibration(decisions: Decisions) -> Part:
    """Returns the distance between a model's confidence and its accuracy.

    The images are divided by confidence into M = 15 bins of equal width. With the images B_m of bin
    m, their accuracy acc(B_m) and their mean confidence conf(B_m), the expected calibration error
    is

        ECE = Σ_m |B_m| / n · |acc(B_m) - conf(B_m)|

    Args:
        decisions: The model's decisions for the n test images.

    Returns:
        A dictionary with the expected error and three lists, which have an entry for each bin: the
        number of images, their accuracy and their mean confidence (None for an empty bin). Bin m
        has the confidences above (m - 1) / M, up to and including m / M. If a confidence is not
        finite, the expected error is None and the lists are empty.

    Source:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, arXiv 1706.04599,
        equations 2 and 3.
    """
    sure = decisions.confidence.double().numpy()
    right = (decisions.labels == decisions.chosen).double().numpy()
    if not np.isfinite(sure).all():
        return {"expected_error": None, "images": [], "accuracy": [], "confidence": []}
    places = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    images = np.bincount(places, minlength=BINS)
    rights, sums = (np.bincount(places, values, BINS).astype(float) for values in (right, sure))
    error = float(np.abs(rights - sums).sum() / len(sure))
    return {
        "expected_error": error,
        "images": images.tolist(),
        "accuracy": _means(rights, images),
        "confidence": _means(sums, images),
    }


def _means(sums: NDArray[np.float64], counts: Matrix) -> list[float | None]:
    """Returns the mean of each bin; None for an empty bin."""
    return [
        float(total / count) if count else None for total, count in zip(sums, counts, strict=True)
    ]


def of_clients(answers: Sequence[Answer]) -> Part:
    """Returns figures that show how the accuracy of the final model differs between clients.

    All clients have the same weight, even if their numbers of images differ. The worst tenth of K
    clients has ⌈K / 10⌉ clients. The standard deviation over the clients measures the fairness of
    the model: the more uniform the accuracy is, the fairer is the model.

    Args:
        answers: The answers of the K clients, each with the accuracy on the client's own test
            images. The server cannot check the answer of a client.

    Returns:
        A dictionary with the figures, and with the lists `client`, `images` and `accuracy`, which
        have an entry for each client with test images.

    Source:
        Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
        arXiv 1905.10497, definition 1 and table 1. The paper states the variance in squared
        percentage points. This function returns the standard deviation of accuracies from 0 to 1.

    Example:
        >>> told = [Answer(k, 10, {RIGHT_KEY: (share, 0.0)}) for k, share in enumerate([0.5, 0.7])]
        >>> found = of_clients(told)
        >>> found["mean"], found["worst_tenth"], round(found["standard_deviation"], 3)
        (0.6, 0.5, 0.1)
    """
    tested = sorted((a for a in answers if a.images), key=lambda answer: answer.client)
    if not tested:
        return {"mean": None, "worst_tenth": None, "standard_deviation": None, "client": []}
    shares = np.array([answer.measured[RIGHT_KEY][0] for answer in tested])
    worst = np.sort(shares)[: math.ceil(len(shares) / WORST_SHARE)]
    return {
        "mean": float(shares.mean()),
        "worst_tenth": float(worst.mean()),
        "standard_deviation": float(shares.std()),
        "client": [answer.client for answer in tested],
        "images": [answer.images for answer in tested],
        "accuracy": shares.tolist(),
    }


def _known(value: float) -> float | None:
    """Returns a number as a Python float, or None for NaN."""
    return None if math.isnan(value) else float(value)
