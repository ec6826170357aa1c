"""What many tests need: one thread, repeatable properties, small images, a small prepared ViT."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

import fl_vitlora.flower  # noqa: F401 - switches telemetry off before any test imports Flower
from fl_vitlora.config import FineTuningConfig, ModelConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.simulation import ray_cluster
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.rng import generator
from tests.waiting import WATCHDOG

os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub
torch.set_num_threads(1)
# A Ray that starts before the last one has ended would fail, however busy the machine is.
ray_cluster.SECONDS_TO_STOP = ray_cluster.SECONDS_TO_END = WATCHDOG
settings.register_profile(
    "house",
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],  # a limit in seconds
)
settings.load_profile("house")

MakeBackbone = Callable[..., Backbone]


@pytest.fixture
def images() -> Tensor:
    """Five images of 16 by 16 pixels, of all grey levels, never the same twice in a row."""
    return torch.randint(
        0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=generator(0, "test images")
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Keeps one Ray up for the whole runs of a file."""
    with Engine(verbose=False) as engine:
        yield engine


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps what tests measure of this machine out of the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def random_vit(*, classes: int = 10, seed: int = 0) -> Backbone:
    """Builds the bundled architecture with random weights, in its head too.

    A fresh head is zero: it would hide from a test whatever lies before it.
    """
    built = backbone.build(ModelConfig(weights="random"), classes, seed)
    head: Any = built.model.get_parameter("head.weight")
    head.data.normal_(std=0.1, generator=generator(seed, "test head"))
    return built


@pytest.fixture
def make_backbone() -> MakeBackbone:
    """Builds the same, prepared for a method."""

    def make(*, classes: int = 10, seed: int = 0, **finetuning: Any) -> Backbone:
        built = random_vit(classes=classes, seed=seed)
        methods.prepare(built.model, FineTuningConfig(**finetuning), seed)
        return built

    return make
