"""Default rates follow the backbone, and a run folder says which they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.config import (
    Config,
    TrainingConfig,
    differences,
    load,
    resolve,
    to_mapping,
    to_yaml,
)
from fl_vitlora.config.grid import read_grid
from fl_vitlora.config.rates import LETTERS, ORDINARY, RATES, Rates, rates_of
from fl_vitlora.models.backbone import BUNDLED

REAL = "vit_small_patch14_dinov2"


def rates(training: TrainingConfig) -> Rates:
    return Rates(**{name: getattr(training, name) for name in vars(LETTERS)})


def test_every_bundled_model_has_rates_of_its_own():
    assert RATES.keys() == BUNDLED.keys()


def test_the_default_job_keeps_its_rates():
    """Another rate would be other bits."""
    assert (
        Rates(learning_rate=2e-2, head_rate=1.0, patch_embed_rate=0.25, body_rate=0.3, beta1=0.5)
        == LETTERS
    )
    assert rates(load(None).training) == rates(Config().training) == LETTERS


@pytest.mark.parametrize("name", [REAL, f"timm/{REAL}.lvd142m", "hf-hub:a/b", "local-dir:x"])
def test_other_models_have_those_of_an_ordinary_vit(name: str):
    assert rates(load(None, {"model.name": name}).training) == ORDINARY == rates_of(name)


@pytest.mark.parametrize("tree", [{}, {"training": {"head_rate": 2.0, "epochs": 3}}])
def test_what_is_said_stays(tree: dict[str, Any]):
    config = resolve({"model": {"name": REAL}, **tree}, {"training.learning_rate": "1e-3"})
    assert config.training.learning_rate == 1e-3
    assert config.training.head_rate == tree.get("training", {}).get("head_rate", 10.0)
    assert config.training.beta1 == ORDINARY.beta1


@pytest.mark.parametrize("nothing", [None, "auto"])
@pytest.mark.parametrize("name", vars(LETTERS))
def test_nothing_and_auto_mean_the_models_own(name: str, nothing: str | None):
    config = load(None, {"model.name": REAL, f"training.{name}": nothing})
    assert rates(config.training) == ORDINARY


@pytest.mark.parametrize("name", ["vit_letters_16", REAL])
def test_a_configuration_says_its_rates_and_reads_back_equal(name: str, tmp_path: Path):
    config = load(None, {"model.name": name})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    again = load(str(tmp_path / "config.yaml"))
    assert again == config
    assert to_mapping(config)["training"]["learning_rate"] == rates_of(name).learning_rate
    assert not differences(config, resolve(to_mapping(config), {"out": None}))


def test_each_cell_of_a_comparison_has_the_rates_of_its_model():
    cells = read_grid({"compare": {"model.name": ["vit_letters_16", REAL]}, "seeds": [0]}, {}).runs
    assert [rates(config.training) for _, config in cells] == [LETTERS, ORDINARY]
