"""How many workers share a GPU, by figures: there is none here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fl_vitlora.config import Config, EngineConfig, TrainingConfig
from fl_vitlora.data.shards import client_shard
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.gpu_sharing import held, workers_in_memory
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers
from fl_vitlora.training.gpu_memory import Memory
from tests.conftest import MakeBackbone

pytestmark = pytest.mark.slow

GiB = 2**30
CONFIG = Config(training=TrainingConfig(batch_size=4), engine=EngineConfig(cohort=2))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder with shards of 10, 30 and 20 images of 768 bytes."""
    for client, images in enumerate((10, 30, 20)):
        (tmp_path / client_shard(client)).write_bytes(bytes(768 * images))
    return tmp_path


@pytest.fixture(scope="module")
def started() -> Iterator[Ray]:
    ray = Ray(Workers(device="cpu", count=1), verbose=False)
    ray.wait()
    yield ray
    ray.stop()


@pytest.fixture
def ray(started: Ray) -> Ray:
    started.measured = None
    return started


def cuda(count: int, gpus: int) -> Workers:
    return Workers(device="cuda", count=count, gpus=gpus)


def images_seen(model: nn.Module) -> list[int]:
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    return seen


@pytest.mark.parametrize(
    ("count", "gpus", "shards", "used"),
    [
        (4, 1, 0, 2),  # 9 to be had, 4 each
        (8, 2, 0, 4),
        (5, 2, 0, 4),
        (3, 2, 0, 3),  # two of one and one of the other
        (8, 4, 0, 8),
        (8, 2, GiB, 2),  # 9 to be had, 5 each
        (8, 2, 100 * GiB, 2),  # one a GPU at least
    ],
)
def test_as_many_work_as_the_gpus_hold(count: int, gpus: int, shards: int, used: int) -> None:
    memory = Memory(free=10 * GiB, context=GiB, step=3 * GiB)
    assert held(cuda(count, gpus), memory, shards) == cuda(used, gpus)


def test_nothing_is_measured_on_the_cpu_or_where_a_number_was_said(
    make_backbone: MakeBackbone, ray: Ray, shards: Path
) -> None:
    backbone = make_backbone()
    seen = images_seen(backbone.model)
    said = dataclasses.replace(CONFIG, engine=EngineConfig(workers=8))
    for workers, config in ((Workers(device="cpu", count=8), CONFIG), (cuda(8, 2), said)):
        assert workers_in_memory(workers, config, backbone, shards, ray) == workers
    assert not seen


def test_what_was_measured_counts_until_a_run_asks_another_step(
    make_backbone: MakeBackbone, ray: Ray, shards: Path
) -> None:
    backbone = make_backbone()
    seen = images_seen(backbone.model)
    other_seed = dataclasses.replace(CONFIG, seed=1)
    larger = dataclasses.replace(CONFIG, training=TrainingConfig(batch_size=5))
    for config, steps in ((CONFIG, [8, 8, 64]), (other_seed, []), (larger, [10, 10, 64])):
        seen.clear()
        workers_in_memory(cuda(8, 2), config, backbone, shards, ray)
        assert seen == steps


def test_the_largest_shards_of_a_batch_count(
    make_backbone: MakeBackbone, ray: Ray, shards: Path
) -> None:
    """The two largest of the three have 50 images of 768 bytes."""
    backbone, wanted = make_backbone(), cuda(8, 2)
    workers_in_memory(wanted, CONFIG, backbone, shards, ray)
    assert ray.measured is not None
    for free, used in ((4 * 50 * 768, 6), (3 * 50 * 768, 4), (5 * 50 * 768, 8)):
        ray.measured = ray.measured[0], Memory(free=free, context=0, step=0)
        assert workers_in_memory(wanted, CONFIG, backbone, shards, ray) == cuda(used, 2)


@pytest.mark.parametrize(
    ("cohort", "advice"), [(2, "--cohort 1"), (1, "--set training.batch_size=2")]
)
def test_a_step_that_does_not_fit_is_a_mistake_told_in_a_line(
    cohort: int, advice: str, make_backbone: MakeBackbone, ray: Ray, shards: Path
) -> None:
    def fails(module: nn.Module, given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    backbone = make_backbone()
    backbone.model.register_forward_pre_hook(fails)
    config = dataclasses.replace(CONFIG, engine=EngineConfig(cohort=cohort))
    with pytest.raises(UserError, match=f"{cohort} × 4 images.*{advice}$"):
        workers_in_memory(cuda(8, 2), config, backbone, shards, ray)
