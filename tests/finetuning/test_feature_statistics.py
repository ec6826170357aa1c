"""Statistics of features: what clients measure, and what the average of the measurements is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.feature_statistics import hooked, patch_tokens, watched
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.rng import generator
from fl_vitlora.state import State
from fl_vitlora.training.local import LocalTask, train
from fl_vitlora.training.stacking import can_stack
from tests.conftest import MakeBackbone

METHOD = "lora+feature_statistics"
NAMES = [f"lora:blocks.2.source_statistics.{name}" for name in ("mean", "square")]


def shard(count: int, seed: int) -> Shard:
    draw = generator(seed, "test shard")
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=draw)
    return Shard(images, torch.arange(count) % 10)


def trained(backbone: Backbone, state: State, own: Shard, rate: float) -> State:
    """Returns the tensors of a client after a round."""
    return train(
        backbone,
        state,
        own,
        config=TrainingConfig(optimizer="sgd", batch_size=4, epochs=2),
        task=LocalTask(learning_rate=rate),
        generator=generator(0, "order"),
    ).state


def features(model: nn.Module, shards: Sequence[Shard]) -> Tensor:
    """Returns the features of all patches of some shards, (patches, D)."""
    seen = list[Tensor]()
    block, _ = watched(model)
    with torch.no_grad(), hooked(block, lambda _module, _inputs, out: seen.append(out)):
        for own in shards:
            model(normalize(own.images))
    return torch.cat([patch_tokens(model, out).flatten(0, 1) for out in seen]).double()


def test_the_weighted_average_of_clients_is_the_mean_over_all_images(make_backbone: MakeBackbone):
    """With a rate of zero the model rests, so that the features of all images can be counted."""
    backbone = make_backbone(method=METHOD)
    start = methods.export_state(backbone.model)
    shards = [shard(7, 0), shard(12, 1)]
    states = [trained(backbone, start, own, 0.0) for own in shards]
    mean, square = (
        sum(len(own) * state[name].double() for own, state in zip(shards, states, strict=True)) / 19
        for name in NAMES
    )
    rows = features(backbone.model, shards)
    assert torch.allclose(torch.as_tensor(mean), rows.mean(dim=0), atol=1e-6)
    assert torch.allclose(torch.as_tensor(square), rows.square().mean(dim=0), atol=1e-6)


def test_measuring_does_not_change_what_is_trained(make_backbone: MakeBackbone):
    own = shard(9, 0)
    ends = []
    for method in (METHOD, "lora"):
        backbone = make_backbone(method=method)
        ends.append(trained(backbone, methods.export_state(backbone.model), own, 0.1))
    assert ends[0].keys() - ends[1].keys() == set(NAMES)
    assert all(torch.equal(tensor, ends[0][name]) for name, tensor in ends[1].items())


def test_earlier_statistics_do_not_matter_to_new_ones(make_backbone: MakeBackbone):
    backbone, own = make_backbone(method=METHOD), shard(6, 0)
    start = methods.export_state(backbone.model)
    other = {name: tensor + 3.0 if name in NAMES else tensor for name, tensor in start.items()}
    one, two = (trained(backbone, state, own, 0.1) for state in (start, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("depth", "block"), [(0.1, 0), (0.5, 2), (1.0, 5)])
def test_the_depth_chooses_the_block(depth: float, block: int, make_backbone: MakeBackbone):
    model = make_backbone(method=METHOD, parameters={"depth": depth}).model
    found, _ = watched(model)
    assert found is model.get_submodule(f"blocks.{block}")


def test_clients_that_measure_do_not_share_a_batch(make_backbone: MakeBackbone):
    assert can_stack(make_backbone(method="lora").model)
    assert not can_stack(make_backbone(method=METHOD).model)
