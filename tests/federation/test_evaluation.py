"""What is measured does not depend on who measures it, only on the images and the key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_vitlora.adaptation import coordinates
from fl_vitlora.config import DataConfig, load
from fl_vitlora.data import sources
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, WRONG_KEY, key_holder
from fl_vitlora.data.shards import Shard
from fl_vitlora.data.views import VALIDATION, sampled
from fl_vitlora.encryption.holder import TEST
from fl_vitlora.federation.evaluation import (
    ALL_VIEWS,
    Answer,
    CentralEvaluator,
    ClientsEvaluator,
    as_chosen_by,
)
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader, reader_of
from fl_vitlora.training import local
from tests.conftest import MakeBackbone


class Answering:
    """Clients that have measured already."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def measure(
        self, server_round: int, model: Any, views: Sequence[str], most: int | None = None
    ) -> Sequence[Answer]:
        self.asked.append((server_round, tuple(views), most))
        return self.answers


def test_answers_of_clients_are_weighted_by_their_test_images():
    """(1 · 0.5 + 3 · 0.9) / 4 and (1 · 2.0 + 3 · 1.0) / 4."""
    clients = Answering(
        Answer(0, 1, {RIGHT_KEY: (0.5, 2.0), NO_KEY: (0.0, 3.0)}),
        Answer(1, 3, {RIGHT_KEY: (0.9, 1.0), NO_KEY: (0.4, 7.0)}),
    )
    evaluator = ClientsEvaluator(transport=clients, views=ALL_VIEWS)
    measured = evaluator.measure(2, GlobalModel(tensors={}), [RIGHT_KEY, NO_KEY])
    assert measured[RIGHT_KEY] == pytest.approx((0.8, 1.25, 4))
    assert measured[NO_KEY] == pytest.approx((0.3, 6.0, 4))
    assert set(measured) == {RIGHT_KEY, NO_KEY}
    assert clients.asked == [(2, (RIGHT_KEY, NO_KEY), None)]


def test_validation_answers_are_weighted_by_validation_images():
    """Each measures three images if it has so many, but weighs as much as all its images."""
    clients = Answering(
        Answer(0, 9, {RIGHT_KEY: (0.0, 9.0), VALIDATION: (0.5, 2.0)}, 2),
        Answer(1, 1, {RIGHT_KEY: (0.5, 4.0), VALIDATION: (0.75, 1.0)}, 6),
    )
    evaluator = ClientsEvaluator(transport=clients, views=ALL_VIEWS)
    views = (VALIDATION, RIGHT_KEY)
    measured = evaluator.measure(2, GlobalModel(tensors={}), views, 5)
    assert measured[VALIDATION] == pytest.approx((0.6875, 1.25, 2 + 3))
    assert measured[RIGHT_KEY] == pytest.approx((0.05, 8.5, 3 + 1))
    assert clients.asked == [(2, views, 5)]


def test_a_strategy_gets_what_was_measured_on_validation_images():
    both = Answer(0, 9, {RIGHT_KEY: (0.0, 9.0), VALIDATION: (0.5, 2.0)}, 2)
    assert as_chosen_by([both]) == [Answer(0, 2, {RIGHT_KEY: (0.5, 2.0)})]
    alone = Answer(0, 9, {RIGHT_KEY: (0.0, 9.0)})
    assert as_chosen_by([alone]) == [alone]


@pytest.mark.parametrize("most", [None, 12])
def test_validation_images_are_measured_as_they_are(
    make_backbone: MakeBackbone, digits: Shard, most: int | None
):
    backbone = make_backbone()
    state = methods.export_state(backbone.model)
    evaluator = central(backbone, digits, encryption__steps=STEPS)
    held = evaluator.shard.take(torch.arange(40))
    evaluator = replace(evaluator, validation=held)
    views = (VALIDATION, *ALL_VIEWS)
    measured = evaluator.measure(1, GlobalModel(tensors=state), views, most)
    assert tuple(measured) == views
    for view, shard in ((VALIDATION, held), (RIGHT_KEY, evaluator.shard), (NO_KEY, digits)):
        few = sampled(shard, most, view)
        assert measured[view] == (*local.evaluate(backbone, state, few), len(few))
    assert measured[VALIDATION].images == (most or 40)


def central(
    backbone: Backbone, plain: Shard, *, keyless: bool = False, **overrides: Any
) -> CentralEvaluator:
    """Makes a server's evaluator, and puts into the model what the server's model reads with."""
    given = {path.replace("__", "."): value for path, value in overrides.items()}
    config = load(None, {"encryption.steps": [], **given})
    holder = key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=bytes(range(32)))
    origin = reader_of(backbone)
    start = coordinates.server_reader(config, origin, holder)
    put_reader(backbone.model, start)
    turn = coordinates.of_party(
        config,
        origin=origin,
        start=start,
        initial=methods.export_state(backbone.model),
        holder=None if keyless else holder,
        party=TEST,
    )
    return CentralEvaluator(
        backbone=backbone,
        shard=Shard(images=holder.encrypt(plain.images, TEST, "test"), labels=plain.labels),
        coordinates=turn,
        holder=None if keyless else holder,
        precision=torch.float32,
    )


@pytest.fixture(scope="module")
def digits() -> Shard:
    _, test = sources.load(DataConfig(limit=60))
    images = test.read(np.arange(60), 16, 16)
    return Shard(images=images, labels=torch.from_numpy(test.labels))


STEPS = "ViT-blockwise"
EXACT: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared": {"encryption__steps": STEPS, "encryption__adapt": True},
    "blocks": {
        "encryption__steps": "EtC",
        "encryption__adapt": True,
        "encryption__scope": "block",
    },
    "aligned": {
        "encryption__steps": STEPS,
        "encryption__adapt": True,
        "encryption__scope": "client",
        "finetuning__patch_embedding": "aligned",
        "evaluation__by": "central",
    },
}


@pytest.mark.parametrize("name", EXACT)
def test_an_adapted_model_is_measured_as_the_plain_one_on_plain_images(
    name: str, make_backbone: MakeBackbone, digits: Shard
):
    """With the right key it computes the same from ciphertext; with a wrong key it does not."""
    plain = make_backbone()
    expected = local.evaluate(plain, methods.export_state(plain.model), digits)
    evaluator = central(backbone := make_backbone(), digits, **EXACT[name])
    state = methods.export_state(backbone.model)
    measured = evaluator.measure(1, GlobalModel(tensors=state), evaluator.views)
    assert measured[RIGHT_KEY] == pytest.approx((*expected, 60), rel=1e-4)
    assert measured.keys() == set(evaluator.views)
    assert set(evaluator.views) == ({RIGHT_KEY} if name == "plain" else set(ALL_VIEWS))
    for view in set(evaluator.views) - {RIGHT_KEY}:
        assert measured[view][1] != pytest.approx(expected[1], rel=1e-3)


def test_without_adaptation_the_plain_images_are_what_no_key_sees(
    make_backbone: MakeBackbone, digits: Shard
):
    backbone = make_backbone()
    state = methods.export_state(backbone.model)
    evaluator = central(backbone, digits, encryption__steps=STEPS)
    measured = evaluator.measure(1, GlobalModel(tensors=state), ALL_VIEWS)
    assert measured[NO_KEY] == (*local.evaluate(backbone, state, digits), 60)
    assert measured[RIGHT_KEY] == (*local.evaluate(backbone, state, evaluator.shard), 60)
    assert len({measured[view][1] for view in (RIGHT_KEY, WRONG_KEY, NO_KEY)}) == 3


def test_who_has_no_key_measures_ciphertext_as_it_is(make_backbone: MakeBackbone, digits: Shard):
    keyed = central(make_backbone(), digits, encryption__steps=STEPS)
    keyless = central(make_backbone(), digits, keyless=True, encryption__steps=STEPS)
    assert keyless.views == (RIGHT_KEY,)
    state = methods.export_state(keyless.backbone.model)
    assert keyless.measure(1, GlobalModel(tensors=state), [RIGHT_KEY]) == keyed.measure(
        1, GlobalModel(tensors=state), [RIGHT_KEY]
    )


@pytest.mark.parametrize("name", EXACT)
def test_measuring_twice_gives_the_same(name: str, make_backbone: MakeBackbone, digits: Shard):
    """The model in which it is done keeps nothing of what was measured before."""
    evaluator = central(backbone := make_backbone(), digits, **EXACT[name])
    state = methods.export_state(backbone.model)
    first = evaluator.measure(1, GlobalModel(tensors=state), [RIGHT_KEY])
    other = {name: -tensor for name, tensor in state.items()}
    evaluator.measure(2, GlobalModel(tensors=other), evaluator.views)
    assert evaluator.measure(3, GlobalModel(tensors=state), [RIGHT_KEY]) == first
