"""What stands behind an accuracy: figures of each class and client, and the calibration."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.experiment.classification import (
    BINS,
    MOST_CLASSES,
    calibration,
    confusion,
    of_classes,
    of_clients,
    report_of,
)
from fl_vitlora.experiment.details import Details
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.storage.trees import build, flatten
from fl_vitlora.training.decisions import Decisions


def decided(labels: list[int], chosen: list[int], confidence: list[float]) -> Decisions:
    return Decisions(
        labels=torch.tensor(labels),
        chosen=torch.tensor(chosen),
        confidence=torch.tensor(confidence),
    )


SIX = decided([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 0], [0.9, 0.8, 0.7, 0.6, 0.5, 1.0])


def test_figures_of_classes_are_those_that_one_counts_by_hand():
    """Class 0: three images, two found; four images are put into it. Nothing is put into 2 or 3."""
    found = of_classes(SIX, 4)
    assert found["precision"] == [2 / 4, 1 / 2, None, None]
    assert found["recall"] == [pytest.approx(2 / 3), 1 / 2, 0.0, None]
    assert found["f1"] == [pytest.approx(4 / 7), 1 / 2, 0.0, None]
    assert found["support"] == [3, 2, 1, 0]
    assert found["confusion_matrix"] == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert found["macro_f1"] == pytest.approx((4 / 7 + 1 / 2 + 0) / 3)  # class 3 has no images
    assert found["images"] == 6


def test_a_class_that_is_only_chosen_has_no_recall_and_does_not_count_in_the_mean():
    found = of_classes(decided([0, 0], [0, 1], [0.5, 0.5]), 2)
    assert found["precision"] == [1.0, 0.0]
    assert found["recall"] == [0.5, None]
    assert found["macro_f1"] == pytest.approx(2 / 3)


def test_a_large_matrix_is_left_out_but_can_be_computed():
    classes = MOST_CLASSES + 1
    found = of_classes(decided([100], [3], [0.5]), classes)
    assert found["confusion_matrix"] is None
    assert len(found["f1"]) == classes
    assert confusion(decided([100], [3], [0.5]), classes)[100, 3] == 1


def test_calibration_is_the_mean_distance_of_confidence_and_accuracy():
    """Two bins: 0.75 (three of four right) is exact, 0.95 (one of two right) is off by 0.45."""
    found = calibration(decided([0] * 6, [0, 0, 0, 1, 0, 1], [0.75, 0.75, 0.75, 0.75, 0.95, 0.95]))
    assert found["expected_error"] == pytest.approx(2 / 6 * 0.45)
    assert [images for images in found["images"] if images] == [4, 2]
    assert found["accuracy"][11] == 0.75
    assert found["accuracy"][0] is None
    assert found["confidence"][14] == pytest.approx(0.95)


@pytest.mark.parametrize(("confidence", "place"), [(0.066, 0), (0.067, 1), (1.0, 14)])
def test_confidences_are_sorted_into_fifteen_bins(confidence: float, place: int):
    assert np.nonzero(calibration(decided([0], [0], [confidence]))["images"])[0].tolist() == [place]


def test_calibration_agrees_with_its_definition_for_many_images():
    """A loop over bins, as the paper writes it."""
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(500, 7, generator=generator)
    labels = torch.randint(7, (500,), generator=generator)
    found = Decisions.of(logits, labels)
    sure, right = found.confidence.double(), (logits.argmax(-1) == labels).double()
    error = 0.0
    for number in range(BINS):
        inside = (sure > number / BINS) & (sure <= (number + 1) / BINS)
        if inside.any():
            error += (
                int(inside.sum()) / 500 * abs(float(right[inside].mean() - sure[inside].mean()))
            )
    assert calibration(found)["expected_error"] == pytest.approx(error, abs=1e-9)


def test_a_model_that_has_diverged_has_no_calibration():
    found = report_of(
        Details(decisions=Decisions.of(torch.full((2, 3), math.nan), torch.tensor([0, 1]))), 3
    )
    assert found["classification"]["calibration"]["expected_error"] is None
    json.dumps(found, allow_nan=False)


def answers(*shares: float) -> list[Answer]:
    return [Answer(k, 10 + k, {RIGHT_KEY: (share, 1.0)}) for k, share in enumerate(shares)]


def test_the_worst_tenth_of_eleven_clients_are_two_and_clients_count_alike():
    found = of_clients(answers(*[0.9] * 9, 0.2, 0.4))
    assert found["worst_tenth"] == pytest.approx(0.3)
    assert found["mean"] == pytest.approx((9 * 0.9 + 0.6) / 11)
    assert found["standard_deviation"] == pytest.approx(np.std([0.9] * 9 + [0.2, 0.4]))
    assert found["client"] == list(range(11))
    assert found["images"][10] == 20


def test_clients_without_test_images_are_left_out():
    empty = Answer(3, 0, {RIGHT_KEY: (0.0, 0.0)})
    assert of_clients([*answers(0.5), empty])["client"] == [0]
    assert of_clients([empty])["mean"] is None


@pytest.mark.parametrize(
    "details", [Details(), Details(decisions=SIX), Details(answers=answers(1))]
)
def test_details_come_back_from_a_checkpoint_and_report_the_same(details: Details):
    read = Details.of_tree(build(*flatten(details.to_tree())))
    assert report_of(read, 4) == report_of(details, 4)
    assert report_of(Details.of_tree(None), 4) == report_of(Details(), 4)
