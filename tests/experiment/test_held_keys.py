"""A model holds a key if its own run, or a run from whose model it started, put the key into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.config import Config, load
from fl_vitlora.experiment.held_keys import holds_key, reveals_part_of_key
from fl_vitlora.models.start import PLAIN, Start

CIPHERTEXT = "ciphertext under the key abc"
FROZEN = {"finetuning.method": "lora"}  # no patch embedding is trained


def begun(folder: Path, *, whole: bool, part: bool, **settings: Any) -> Config:
    """Returns the settings of a run that started from a model."""
    start = Start(
        run="runs/old",
        digest="abc",
        model="vit_letters_16",
        reads=CIPHERTEXT if whole or part else PLAIN,
        holds_key=whole,
        reveals_part_of_key=part,
        class_names=("a",),
        tensors={},
    )
    return load(None, {**FROZEN, "model.weights": str(start.write(folder)), **settings})


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", [True, False])
def test_what_the_start_gives_away_the_model_gives_away(
    whole: bool, part: bool, tmp_path: Path
) -> None:
    config = begun(tmp_path, whole=whole, part=part)
    assert holds_key(config, "ciphertext") == whole
    assert reveals_part_of_key(config, "ciphertext") == part
    assert not holds_key(config, "plain")
    assert not reveals_part_of_key(config, "plain")


@pytest.mark.parametrize(
    ("settings", "whole", "part"),
    [
        ({}, False, False),
        ({"finetuning.method": "lora+patch_embed"}, False, True),
        ({"encryption.adapt": True}, True, False),
        ({"encryption.adapt": True, "encryption.steps": []}, False, False),
    ],
)
def test_a_run_without_a_start_says_it_from_its_settings(
    settings: dict[str, Any], whole: bool, part: bool
) -> None:
    config = load(None, {**FROZEN, **settings})
    assert holds_key(config, "ciphertext") == whole
    assert reveals_part_of_key(config, "ciphertext") == part
