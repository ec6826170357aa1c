"""A worker computes the features of a shard once, and anew when anything has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fl_vitlora.data.shards import Shard, client_shard, write_shard
from fl_vitlora.encryption.storage_keys import StorageKeys, of_secret
from fl_vitlora.flower.client.feature_cache import FeatureCache
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader, reader_of
from fl_vitlora.storage.checksummed import read_sealed
from fl_vitlora.training.inputs import features_of_shard, frozen_of
from tests.conftest import MakeBackbone
from tests.whole_runs import execute

KEY = of_secret(bytes(32))
KEYS = StorageKeys(roots={KEY.name: KEY.root})
NAME = client_shard(3)
BYTES = 5 * 96 * 4  # five images, the width of the model, float32


class Worker:
    """A worker with a model of its own, which counts the images that its backbone computes."""

    def __init__(self, backbone: Backbone, folder: Path, **given: Any) -> None:
        self.backbone, self.computed = backbone, 0
        vit: Any = backbone.model
        vit.blocks[0].register_forward_hook(self._count)
        frozen = frozen_of(backbone.model)
        assert frozen is not None
        self.frozen = frozen
        told = {"keys": KEYS, "most": 10**6, "on_disk": True, "precision": torch.float32, **given}
        self.cache = FeatureCache(frozen=frozen, shards=folder, **told)

    def _count(self, module: object, inputs: tuple[Tensor], output: object) -> None:
        self.computed += len(inputs[0])

    def ask(self, shard: Shard, factor: float = 1.0) -> tuple[Tensor | None, int]:
        """Returns the features, and how many images the backbone computed for them.

        The first call computes one image more, which shows the size of the features.
        """
        self.computed = 0
        reader = reader_of(self.backbone)
        features = self.cache(NAME, shard, reader.with_weight(factor * reader.weight))
        put_reader(self.backbone.model, reader)
        return features, self.computed


@pytest.fixture
def shard(tmp_path: Path, images: Tensor) -> Shard:
    shard = Shard(images, torch.arange(5))
    write_shard(tmp_path / NAME, shard, {"party": "client 3"}, KEY)
    return shard


def test_features_are_computed_once_and_then_read(
    shard: Shard, tmp_path: Path, make_backbone: MakeBackbone
):
    first, other = (Worker(make_backbone(method="head"), tmp_path) for _ in range(2))
    expected = features_of_shard(first.frozen, shard, torch.device("cpu"), torch.float32)
    for worker, computed in ((first, 1 + 5), (first, 0), (other, 1), (other, 0)):
        features, images = worker.ask(shard)
        assert features is not None
        assert torch.equal(features, expected)
        assert images == computed


def test_another_image_model_or_reader_gives_new_features(
    shard: Shard, tmp_path: Path, make_backbone: MakeBackbone
):
    worker = Worker(make_backbone(method="head"), tmp_path)
    first, _ = worker.ask(shard)
    images = shard.images.clone()
    images[4, 0, 0, 0] ^= 1
    changed = replace(shard, images=images)
    moved = Worker(make_backbone(method="head", seed=1), tmp_path)
    found = [worker.ask(changed), worker.ask(changed, factor=2.0), moved.ask(changed)]
    assert [computed for _, computed in found] == [5, 5, 1 + 5]
    for features, _ in found:
        assert first is not None
        assert features is not None
        assert not torch.equal(features, first)


@pytest.mark.parametrize(
    ("most", "kept", "files"), [(0, False, 0), (BYTES - 1, False, 0), (BYTES, True, 1)]
)
def test_features_larger_than_the_budget_are_not_kept(
    shard: Shard, tmp_path: Path, make_backbone: MakeBackbone, most: int, *, kept: bool, files: int
):
    worker = Worker(make_backbone(method="head"), tmp_path, most=most)
    features, _ = worker.ask(shard)
    assert (features is not None) == kept
    assert len(list((tmp_path / "features").glob("*"))) == files


def test_a_full_folder_gets_no_further_file(
    shard: Shard, tmp_path: Path, make_backbone: MakeBackbone
):
    """The worker that computed the features still keeps them in memory."""
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "other").write_bytes(bytes(100))
    worker = Worker(make_backbone(method="head"), tmp_path, most=BYTES + 99)
    assert [worker.ask(shard)[1] for _ in range(2)] == [1 + 5, 0]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["other"]


def test_features_that_may_not_be_written_stay_in_memory(
    shard: Shard, tmp_path: Path, make_backbone: MakeBackbone
):
    worker = Worker(make_backbone(method="head"), tmp_path, on_disk=False)
    assert [worker.ask(shard)[1] for _ in range(2)] == [1 + 5, 0]
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("method", ["head", "losa"])
def test_a_run_with_kept_features_ends_with_the_same_bits(
    tmp_path: Path, engine: Engine, method: str
):
    """Both runs train on the same ciphertext; one computes the features in every step."""
    for name, most in (("kept", 1024), ("computed", 0)):
        execute(
            tmp_path / name,
            engine,
            finetuning__method=method,
            engine__feature_cache_mb=most,
            encryption__key_file=str(tmp_path / "owner.key"),
        )
    kept, computed = (
        read_sealed(tmp_path / name / "run" / "model.safetensors")[0]
        for name in ("kept", "computed")
    )
    assert kept.keys() == computed.keys()
    assert all(torch.equal(tensor, computed[name]) for name, tensor in kept.items())
    assert not (tmp_path / "computed" / "run" / "shards" / "features").exists()
    files = list((tmp_path / "kept" / "run" / "shards" / "features").iterdir())
    assert {file.name for file in files} == {client_shard(client) for client in range(len(files))}
