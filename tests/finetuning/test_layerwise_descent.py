"""Layer-wise descent: readouts, the term of the loss, the duals, and what the constraint does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig, ModelConfig, TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.readouts import block_outputs, readout, readout_losses
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.rng import generator
from fl_vitlora.state import State
from fl_vitlora.training.local import LocalTask, train
from fl_vitlora.training.stacking import can_stack
from tests.conftest import MakeBackbone

METHOD = "lora+descent"
DUALS, READOUTS = "control:descent.duals", "lora:descent.readouts"
BLOCKS, WIDTH = 6, 96


@pytest.fixture
def shard() -> Shard:
    draw = generator(0, "test shard")
    images = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=draw)
    return Shard(images, torch.arange(12) % 10)


def trained(built: Backbone, state: State, shard: Shard, epochs: int = 2) -> State:
    """Returns the tensors of a client after a round."""
    return train(
        built,
        state,
        shard,
        config=TrainingConfig(optimizer="adam", batch_size=4, epochs=epochs),
        task=LocalTask(learning_rate=3e-3, frozen=frozenset({DUALS} & state.keys())),
        generator=generator(0, "order"),
    ).state


def losses(model: nn.Module, shard: Shard) -> Tensor:
    """Returns f_0 ... f_L over a shard, (L + 1,)."""
    with torch.no_grad(), block_outputs(model.eval()) as outputs:
        model(normalize(shard.images))
        return readout_losses(model, outputs, shard.labels)


def test_without_duals_training_is_the_same_bit_by_bit(make_backbone: MakeBackbone, shard: Shard):
    ends = []
    for method in (METHOD, "lora"):
        built = make_backbone(method=method)
        ends.append(trained(built, methods.export_state(built.model), shard))
    assert ends[0].keys() - ends[1].keys() == {DUALS, READOUTS}
    assert all(torch.equal(tensor, ends[0][name]) for name, tensor in ends[1].items())


def test_the_readout_after_the_last_block_is_the_output_of_the_model(
    make_backbone: MakeBackbone, images: Tensor
):
    model: Any = make_backbone(method=METHOD).model.eval()
    with torch.no_grad(), block_outputs(model) as outputs:
        logits = model(normalize(images))
        assert torch.equal(readout(model, outputs[-1]), logits)
        assert torch.equal(
            model.forward_intermediates(normalize(images), output_fmt="NLC")[1][-1],
            outputs[-1][:, 1:],
        )
    assert len(outputs) == BLOCKS + 1


def test_clients_send_the_mean_of_the_losses_over_their_images(
    make_backbone: MakeBackbone, shard: Shard
):
    built = make_backbone(method=METHOD)
    start = methods.export_state(built.model)
    resting = frozenset(start) - {READOUTS}
    measured = train(
        built,
        start,
        shard,
        config=TrainingConfig(optimizer="sgd", batch_size=5),
        task=LocalTask(learning_rate=0.1, frozen=resting - {"head.bias"}),
        generator=generator(0, "order"),
    )
    still = LocalTask(learning_rate=0.0, frozen=resting - {"head.bias"})
    config = TrainingConfig(optimizer="sgd", batch_size=5)
    draw = generator(0, "order")
    at_rest = train(built, start, shard, config=config, task=still, generator=draw)
    assert torch.allclose(at_rest.state[READOUTS], losses(built.model, shard), atol=1e-5)
    # the last loss is the cross-entropy that the client reports anyway
    assert measured.loss == pytest.approx(float(measured.state[READOUTS][-1]), rel=1e-5)


@pytest.mark.parametrize("hold_earlier", [False, True])
def test_the_gradient_of_the_term_is_that_of_finite_differences(
    hold_earlier: bool, make_backbone: MakeBackbone, images: Tensor
):
    """If the earlier losses are held, the gradient is that of Σ λ_l · f_l."""
    parameters = {"hold_earlier": hold_earlier}
    model = make_backbone(method=METHOD, parameters=parameters).model.double()
    inputs, labels = normalize(images).double(), torch.arange(len(images))
    weight = model.get_parameter("blocks.1.attn.qkv.adapters.v.lora_B")
    duals = model.get_parameter("descent.duals")
    torch.manual_seed(0)
    duals.data.uniform_(0.5, 1.5)
    direction = torch.randn_like(weight)
    with methods.watch(model) as terms:
        model(inputs)
        (gradient,) = torch.autograd.grad(torch.as_tensor(terms[0](labels)), weight)

    def value() -> Tensor:
        with torch.no_grad(), block_outputs(model) as outputs:
            model(inputs)
            found = readout_losses(model, outputs, labels)
            return (duals * (found[1:] - (0.0 if hold_earlier else 0.95) * found[:-1])).sum()

    values = []
    for step in (1e-5, -2e-5):
        weight.data += step * direction
        values.append(value())
    slope = float(values[0] - values[1]) / 2e-5
    assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def decided(readouts: list[float], duals: list[float], number: int, **own: float) -> list[float]:
    """Returns the duals after a round."""
    method = shelf.method_of(FineTuningConfig(method="descent", parameters=own))
    after = {DUALS: torch.tensor(duals), READOUTS: torch.tensor(readouts)}
    known = Aggregated(round=number, rounds=9, before=after, after=after)
    changed, _ = method.decide(known, {})
    return changed.get(DUALS, after[DUALS]).tolist()


def test_the_duals_rise_where_the_loss_does_not_fall_and_are_never_negative():
    own = {"fall": 0.5, "dual_rate": 1.0, "resilience": 2.0}
    # 3 - 0.5·2 = 2 too much in the first block; 1 - 0.5·3 = -0.5 is enough in the second one
    assert decided([2.0, 3.0, 1.0], [0.0, 0.0], 2, **own) == [2.0, 0.0]
    # 1 + (2 - 1/2) = 2.5, and 0.2 + (-0.5 - 0.1) < 0
    assert decided([2.0, 3.0, 1.0], [1.0, 0.2], 3, **own) == [2.5, 0.0]
    assert decided([2.0, 3.0, 1.0], [1.0, 0.2], 3, limit=1.5, **own) == [1.5, 0.0]


def test_the_duals_stay_zero_in_the_warm_up_and_with_a_step_of_zero():
    assert decided([2.0, 3.0, 4.0], [0.0, 0.0], 1) == [0.0, 0.0]
    assert decided([2.0, 3.0, 4.0], [0.0, 0.0], 3, warm_up=4) == [0.0, 0.0]
    assert decided([2.0, 3.0, 4.0], [0.0, 0.0], 3, dual_rate=0.0) == [0.0, 0.0]
    assert decided([0.0, 0.0, 0.0], [0.0, 0.0], 3) == [0.0, 0.0]  # nobody has measured


@pytest.mark.parametrize("hold_earlier", [False, True])
def test_a_dual_lowers_the_violation_of_its_constraint(hold_earlier: bool, shard: Shard):
    """With the dual of the first block, the loss falls more in this block than without it."""
    violations, first = list[float](), list[float]()
    for dual in (0.0, 1.0):
        built = backbone.build(ModelConfig(), 10, 0)
        parameters = {"hold_earlier": hold_earlier}
        methods.prepare(built.model, FineTuningConfig(method=METHOD, parameters=parameters), 0)
        state = methods.export_state(built.model)
        state[DUALS][0] = dual
        methods.load_state(built.model, trained(built, state, shard, epochs=5))
        found = losses(built.model, shard)
        violations.append(float(found[1] - 0.95 * found[0]))
        first.append(float(found[0]))
    assert violations[1] < violations[0] - 0.1
    assert (first[1] > first[0] + 0.5) is not hold_earlier  # the cheap way to meet a constraint


def test_clients_under_constraints_do_not_share_a_batch(make_backbone: MakeBackbone):
    assert not can_stack(make_backbone(method=METHOD).model)


def test_a_model_without_a_normalisation_after_its_blocks_is_refused():
    model = backbone.build(ModelConfig(weights="random"), 10, 0).model
    del model.norm
    with pytest.raises(UserError, match="which VisionTransformer lacks; use a plain ViT"):
        methods.prepare(model, FineTuningConfig(method=METHOD), 0)
