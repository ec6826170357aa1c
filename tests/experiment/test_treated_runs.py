"""Whole runs on copies and through sensors: clients count and weigh what they train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fl_vitlora.experiment.recorded_updates import read_round
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.flower.strategies.accounting import epsilon
from fl_vitlora.strategy import averaged
from fl_vitlora.training.steps import steps_of
from tests.whole_runs import execute, owned

pytestmark = pytest.mark.slow

COPIED: dict[str, Any] = {"data__copies": 3, "data__augment": ["crop"]}
SKEWED: dict[str, Any] = {"data__feature_skew": 0.5, "data__partition": "quantity"}


def test_an_epoch_is_a_pass_over_all_copies_and_weights_are_as_without(
    tmp_path: Path, engine: Engine
) -> None:
    """All clients have the same number of copies of each image, so shares do not change."""
    plain = execute(tmp_path / "plain", engine, **SKEWED)
    copied = execute(tmp_path / "copied", engine, **SKEWED, **COPIED, record_updates=True)
    images, _ = owned(copied.config)
    first, second = (read_round(copied.folder, number) for number in (1, 2))
    for update in (*first.updates, *second.updates):
        count = 3 * len(images.parts[update.client])
        assert update.samples == count
        assert update.steps == steps_of(count, copied.config.training)
    expected = averaged(first.model, first.updates)
    assert all(torch.equal(expected[name], second.model[name]) for name in second.model)
    assert copied.result["largest_share"] == plain.result["largest_share"]
    assert copied.result["test_images"] == plain.result["test_images"] == 160


def test_the_privacy_of_a_client_is_that_of_all_its_copies(tmp_path: Path, engine: Engine) -> None:
    """An update is clipped as a whole, so ε does not depend on how many images made it."""
    noise: dict[str, Any] = {"privacy__clipping_norm": 1.0, "privacy__noise_multiplier": 2.0}
    done = execute(tmp_path, engine, **COPIED, **noise)
    expected = epsilon(noise_multiplier=2.0, releases=2, delta=1e-5)
    assert done.result["privacy"]["epsilon"] == pytest.approx(expected)


def test_clients_with_sensors_evaluate_on_their_own_test_images(
    tmp_path: Path, engine: Engine
) -> None:
    done = execute(tmp_path, engine, **SKEWED, **COPIED, evaluation__by="clients")
    images, _ = owned(done.config)
    assert done.result["test_images"] == sum(map(len, images.test_parts)) == 160
