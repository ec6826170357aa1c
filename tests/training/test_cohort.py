"""Clients trained in one batch must come to what each comes to alone.

They are compared in double precision. In single precision sums are rounded in another order, and
AdamW makes steps of full size out of gradients that are all rounding (`test_adaptation`); so whole
runs are compared by what they learn.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from fl_vitlora.config import FineTuningConfig, TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.lda import LDA
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader, reader_of
from fl_vitlora.state import State
from fl_vitlora.training.cohort import CohortTrainer, LocalJob, why_alone
from fl_vitlora.training.local import LocalTask, Trained
from fl_vitlora.training.objective import Proximal
from fl_vitlora.training.stacking import can_stack
from tests.conftest import MakeBackbone, random_vit

RAGGED = (13, 5, 21, 8, 1)
CLASSES = 10


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def moved(state: State, by: float, seed: int) -> State:
    random = torch.Generator().manual_seed(seed)
    return {n: t + by * torch.randn(t.shape, generator=random) for n, t in state.items()}


def shard_of(size: int, shape: Sequence[int], seed: int) -> Shard:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (size, *shape), generator=random, dtype=torch.uint8)
    return Shard(images=images, labels=torch.randint(0, CLASSES, (size,), generator=random))


def jobs(
    backbone: Backbone,
    *,
    sizes: Sequence[int] = RAGGED,
    readers: Sequence[PatchReader] | None = None,
    increments: State | None = None,
    **task: Any,
) -> list[LocalJob]:
    first = methods.export_state(backbone.model)
    own = reader_of(backbone)
    return [
        LocalJob(
            start=moved(first, 0.05, client),
            shard=shard_of(size, backbone.image_shape, client),
            task=LocalTask(**{"learning_rate": 0.01, **task}),
            generator=torch.Generator().manual_seed(client),
            reader=readers[client] if readers else own,
            increments=increments or {},
        )
        for client, size in enumerate(sizes)
    ]


def with_task(job: LocalJob, **changes: Any) -> LocalJob:
    return dataclasses.replace(job, task=dataclasses.replace(job.task, **changes))


def trainer(backbone: Backbone, config: TrainingConfig, *, stacked: bool) -> CohortTrainer:
    return CohortTrainer(backbone=backbone, stacks=stacked, config=config, precision=torch.float32)


def both(backbone: Backbone, config: TrainingConfig, **given: Any) -> list[list[Trained]]:
    backbone.model.double()
    assert can_stack(backbone.model)
    first = methods.export_state(backbone.model)
    twice = [jobs(backbone, **given) for _ in range(2)]
    found = [
        trainer(backbone, config, stacked=stacked).train(lessons_given)
        for stacked, lessons_given in zip((False, True), twice, strict=True)
    ]
    methods.load_state(backbone.model, first)
    return found


def assert_same(alone: Sequence[Trained], together: Sequence[Trained]) -> None:
    assert [one.steps for one in alone] == [one.steps for one in together]
    for one, other in zip(alone, together, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-9)
        assert one.state.keys() == other.state.keys()
        for name, tensor in one.state.items():
            torch.testing.assert_close(other.state[name], tensor, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("method", ["lora+patch_embed", "lora", "head"])
def test_ragged_shards_learn_together_what_they_learn_alone(
    method: str, optimizer: Literal["adamw", "sgd"], make_backbone: MakeBackbone
) -> None:
    config = TrainingConfig(batch_size=4, epochs=2, optimizer=optimizer)
    alone, together = both(make_backbone(method=method), config)
    assert_same(alone, together)
    assert alone[0].steps == 8
    assert not torch.equal(alone[0].state["head.weight"], alone[1].state["head.weight"])


@pytest.mark.parametrize("measuring", [True, False])
def test_clients_measure_one_by_one_and_then_train_together(
    measuring: bool, make_backbone: MakeBackbone
) -> None:
    backbone = make_backbone(method="lora+patch_embed+lda")
    names = set(methods.export_state(backbone.model))
    statistics = {name for name in names if name.endswith(LDA.measured)}
    frozen = frozenset(names - statistics if measuring else statistics)
    alone, together = both(backbone, TrainingConfig(batch_size=4), frozen=frozen)
    assert_same(alone, together)
    head = [one.state["head.weight"] for one in together]
    first = [job.start["head.weight"] for job in jobs(backbone)]
    assert all(torch.equal(a, b) == measuring for a, b in zip(head, first, strict=True))
    images = next(iter(statistics - {name for name in statistics if "moments" in name}))
    shares = [float(one.state[images][:, -1].sum()) for one in together]
    assert (shares == pytest.approx([1.0] * len(RAGGED))) == measuring


@dataclasses.dataclass(frozen=True)
class Quartic:
    """A made-up term of the objective."""

    weight: float

    def __call__(self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
        return (
            self.weight
            * torch.stack([(p - anchor[name]).pow(4).sum() for name, p in parameters.items()]).sum()
        )


def test_a_term_is_felt_and_separates_clients(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone(method="head")
    config = TrainingConfig(optimizer="sgd", batch_size=4)
    plain, _ = both(backbone, config)
    heavy, _ = both(backbone, config, terms=(Quartic(1e4),))
    assert not torch.equal(plain[0].state["head.weight"], heavy[0].state["head.weight"])
    first = jobs(backbone)[0]
    assert not first.goes_with(with_task(first, terms=(Quartic(1.0),)))


CIRCUMSTANCES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clipping": ({"clip_norm": 0.1}, {}),
    "rates of their own": ({"patch_embed_rate": 0.3, "head_rate": 3.0}, {}),
    "momentum": ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1}, {}),
    "smoothing": ({"label_smoothing": 0.2}, {}),
    "a penalty": ({"optimizer": "sgd"}, {"terms": (Proximal(3.0),)}),
    "a term": ({"optimizer": "sgd"}, {"terms": (Quartic(3.0),)}),
    "frozen factors": ({}, {"frozen": "lora_A"}),
    "equal shards": ({}, {"sizes": (8, 8, 8)}),
    "one client": ({}, {"sizes": (9,)}),
}


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_so_they_do_under_all_circumstances(name: str, make_backbone: MakeBackbone) -> None:
    training, given = CIRCUMSTANCES[name]
    backbone = make_backbone()
    if "frozen" in given:
        names = methods.trainable(backbone.model)
        given = {"frozen": frozenset(n for n in names if n.endswith(given["frozen"]))}
    config = TrainingConfig(**{"batch_size": 4, **training})
    starts = [one.start for one in jobs(backbone, **given)]
    alone, together = both(backbone, config, **given)
    assert_same(alone, together)
    for one, start in zip(together, starts, strict=True):
        for frozen in given.get("frozen", ()):
            assert torch.equal(one.state[frozen], start[frozen])


def test_a_drift_of_each_client_is_its_own(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    config = TrainingConfig(optimizer="sgd", batch_size=4, weight_decay=0.0)
    backbone.model.double()

    def drifting() -> list[LocalJob]:
        return [
            with_task(one, drift={"head.bias": torch.full((CLASSES,), float(client))})
            for client, one in enumerate(jobs(backbone))
        ]

    first, second = drifting(), drifting()
    alone = trainer(backbone, config, stacked=False).train(first)
    together = trainer(backbone, config, stacked=True).train(second)
    assert_same(alone, together)
    for client, (one, job) in enumerate(zip(together, second, strict=True)):
        gained = one.state["head.bias"].mean() - job.start["head.bias"].mean()
        pushed = client * job.task.learning_rate * one.steps  # no gradient moves the mean
        assert float(gained) == pytest.approx(pushed, abs=1e-9)


@pytest.mark.parametrize("per_patch", [False, True])
@pytest.mark.parametrize("method", ["lora+patch_embed", "lora"])
def test_clients_that_read_with_keys_of_their_own_go_together(
    method: str, per_patch: bool, make_backbone: MakeBackbone
) -> None:
    backbone = make_backbone(method=method)
    own = reader_of(backbone)
    assert own.position is not None
    weight = own.weight_of_blocks(len(own.position)) if per_patch else own.weight

    def other(client: int) -> PatchReader:
        assert own.position is not None
        order = torch.randperm(len(own.position), generator=torch.Generator().manual_seed(client))
        flipped = weight.roll(client, dims=-1).double()
        return PatchReader(weight=flipped, position=own.position[order].double())

    readers = [other(client) for client in range(len(RAGGED))]
    put_reader(backbone.model, readers[0])
    config = TrainingConfig(batch_size=4)
    alone, together = both(backbone, config, readers=readers)
    assert_same(alone, together)
    plain, _ = both(backbone, config)
    assert plain[1].loss != pytest.approx(alone[1].loss, rel=1e-4)  # the readers do matter


def test_what_was_merged_into_frozen_weights_counts(make_backbone: MakeBackbone) -> None:
    backbone, config = make_backbone(), TrainingConfig(batch_size=4)
    name = "blocks.0.attn.qkv.adapters.q"
    width = methods.export_state(backbone.model)[f"{name}.lora_A"].shape[1]
    alone, together = both(backbone, config, increments={name: torch.randn(width, width)})
    assert_same(alone, together)
    plain, _ = both(backbone, config)
    assert plain[0].loss != pytest.approx(alone[0].loss, rel=1e-6)


def test_only_those_who_are_asked_the_same_go_together(make_backbone: MakeBackbone) -> None:
    backbone, config = make_backbone(), TrainingConfig(batch_size=4)
    backbone.model.double()

    def mixed() -> list[LocalJob]:
        given = jobs(backbone)
        merged = {"blocks.0.attn.qkv.adapters.q": torch.eye(given[0].reader.weight.shape[0])}
        given[1] = with_task(given[1], learning_rate=1e-4)
        given[3] = dataclasses.replace(given[3], increments=merged)
        return given

    first, second = mixed(), mixed()
    assert [first[0].goes_with(one) for one in first] == [True, False, True, False, True]
    alone = trainer(backbone, config, stacked=False).train(first)
    together = trainer(backbone, config, stacked=True).train(second)
    assert_same(alone, together)


def test_the_matrix_between_is_stacked_as_well() -> None:
    backbone = random_vit()
    methods.prepare(backbone.model, FineTuningConfig(), 0, "sandwich")
    names = methods.trainable(backbone.model)
    frozen = frozenset(n for n in names if n.endswith(("lora_A", "lora_B")))
    assert any(n.endswith("lora_R") for n in names)
    alone, together = both(backbone, TrainingConfig(batch_size=4), frozen=frozen)
    assert_same(alone, together)


def test_who_diverges_diverges_alone(make_backbone: MakeBackbone) -> None:
    backbone, config = make_backbone(), TrainingConfig(batch_size=4, clip_norm=1.0)
    backbone.model.double()
    first, second = jobs(backbone), jobs(backbone)
    broken = {name: tensor * float("nan") for name, tensor in first[2].start.items()}
    second[2] = dataclasses.replace(second[2], start=broken)
    alone = trainer(backbone, config, stacked=False).train(first)
    together = trainer(backbone, config, stacked=True).train(second)
    assert not any(tensor.isfinite().any() for tensor in together[2].state.values())
    del alone[2], together[2]
    assert_same(alone, together)


def test_the_model_of_one_stays_as_it_was(make_backbone: MakeBackbone) -> None:
    backbone, config = make_backbone(), TrainingConfig(batch_size=4)
    backbone.model.double()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    trainer(backbone, config, stacked=True).train(jobs(backbone))
    after: dict[str, Tensor] = backbone.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_full_fine_tuning_is_not_stacked(make_backbone: MakeBackbone) -> None:
    assert not can_stack(make_backbone(method="full").model)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("sara+feature_statistics", "sara and feature_statistics cannot train"),
        ("lora+descent", "descent cannot train several clients in one batch"),
        ("lora+patch_embed", "$"),
    ],
)
def test_the_reason_why_clients_train_alone_names_what_is_in_the_way(
    make_backbone: MakeBackbone, method: str, reason: str
) -> None:
    found = why_alone(make_backbone(method=method).model, TrainingConfig())
    assert re.match(reason, found)


def test_a_plan_that_freezes_everything_is_refused(make_backbone: MakeBackbone) -> None:
    backbone = make_backbone()
    with pytest.raises(ValueError, match="freezes every tensor"):
        both(backbone, TrainingConfig(), frozen=frozenset(methods.trainable(backbone.model)))


def test_clients_may_make_different_numbers_of_passes(make_backbone: MakeBackbone) -> None:
    """A strategy may ask each client for epochs of its own; they still share a batch."""
    config = TrainingConfig(batch_size=4, epochs=5)
    backbone = make_backbone()
    backbone.model.double()
    first = methods.export_state(backbone.model)
    found = []
    for stacked in (False, True):
        given = [with_task(one, epochs=n) for one, n in zip(jobs(backbone), (1, 3, 2))]  # noqa: B905
        found.append(trainer(backbone, config, stacked=stacked).train(given))
        methods.load_state(backbone.model, first)
    assert_same(*found)
    assert [one.steps for one in found[0]] == [
        n * math.ceil(size / 4) for n, size in zip((1, 3, 2), RAGGED, strict=False)
    ]
