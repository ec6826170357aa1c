"""A hostile server reads images from the answers of a real client, and a guard stops it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import strategies
from fl_vitlora.attacks.crafted_embedding import (
    CHANCE,
    ERROR,
    IMAGES,
    REFUSED,
    CraftedEmbedding,
)
from fl_vitlora.attacks.crafting import crafted, read, sensitivity
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import HostileServerView
from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.experiment.hostile_server import asking, bounding
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import WEIGHT
from fl_vitlora.strategy import Strategy
from tests.attacks.made_up_views import (
    digits,
    encrypted,
    holder,
    model_of,
    named,
    public,
    settings,
    start_of,
    truth,
)

LACKING = 3  # the class that the client does not have
Observe = Callable[..., tuple[HostileServerView, Truth]]


@pytest.fixture
def observe(tmp_path: Path) -> Observe:
    """Makes what a hostile server has against a client with a number of images."""

    def observed(images: int, **given: Any) -> tuple[HostileServerView, Truth]:
        config = settings(encryption__at_rest="none", **given)
        keys, source = holder(config), sources.load(config.data)
        places = np.flatnonzero(source[0].labels != LACKING)[:images]
        owner.write_encrypted_shards(
            tmp_path,
            train=source[0],
            test=source[1],
            parts=[places],
            test_parts=[np.arange(2)],
            holder=keys,
            metadata={},
            storage=None,
        )
        plain = Shard(
            images=source[0].read(places, 16, 16),
            labels=torch.from_numpy(source[0].labels[places]),
        )
        others = digits(1000, 1200).images
        return _view(config, tmp_path, source[0].class_names, others), truth(keys, [plain], others)

    return observed


def _view(
    config: Config, folder: Path, names: tuple[str, ...], others: torch.Tensor
) -> HostileServerView:
    keyless = replace(config, encryption=replace(config.encryption, key_file=""))
    strategy = strategies.load_for(config)
    assert isinstance(strategy, Strategy)
    client = ClientSettings(
        shards=str(folder), class_names=names, device="cpu", config=keyless, strategy=strategy
    )
    backbone, reader = model_of(config)
    start = methods.export_state(backbone.model)
    return HostileServerView(
        public=public(config, others, reader),
        reader=reader,
        client=0,
        model=backbone.model,
        start=start,
        ask=asking(client, 0),
        accepted=bounding(config, strategy, start, methods.rates(backbone.model)),
    )


def test_without_a_guard_images_of_a_full_round_of_adamw_are_recovered(observe: Observe):
    view, true = observe(30)  # four steps of the default optimiser on 30 images
    attack = CraftedEmbedding(images=3)
    assert attack.lacks(view) == ""
    found = named(attack.score(attack.guess(view), true))
    assert found[IMAGES].value > 50  # images with nearly the same projection come back mixed
    assert found[ERROR].value < 1 < found[CHANCE].value
    assert found[REFUSED].value == 0


def test_with_a_guard_no_image_is_recovered(observe: Observe):
    view, true = observe(30, privacy__guard_steps=4)
    attack = CraftedEmbedding(images=1)
    found = named(attack.score(attack.guess(view), true))
    assert found[IMAGES].value == 0
    assert found[REFUSED].value > 0


def test_in_float64_a_crafted_model_gives_the_patches_of_one_image():
    config = settings()
    backbone, _ = model_of(config)
    known = sensitivity(backbone.model, backbone.image_shape)
    kernel = torch.randn(48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tensors = crafted(
        start_of(backbone, head=False), known, absent=LACKING, kernel=kernel, slope=0.0, level=0.0
    )
    tensors[WEIGHT].zero_()  # the tokens then do not depend on the image at all
    model = backbone.model.double()
    methods.load_state(model, {name: tensor.double() for name, tensor in tensors.items()})
    image = encrypted(digits(0, 1), holder(config), 0).images
    pixels = normalize(image).double()
    torch.nn.functional.cross_entropy(model(pixels), torch.tensor([0])).backward()
    gradient = {n: p.grad for n, p in methods.trainable(model).items() if p.grad is not None}
    patches, _ = read(gradient, known)
    true = normalize(_patches(image)).double()
    assert (patches - true).abs().max() < 1e-6  # the row of the head is float32


def _patches(image: torch.Tensor) -> torch.Tensor:
    return to_blocks(image, 4)[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"privacy__secure_aggregation": True}, "a sum takes 3 clients"),
        ({"finetuning__method": "lora"}, "to be exchanged"),
        ({"finetuning__patch_embedding": "aligned"}, "only the client can transform"),
    ],
)
def test_what_the_server_lacks_is_told(given: dict[str, Any], told: str):
    config = settings(**given)
    backbone, reader = model_of(config)
    view = HostileServerView(
        public=public(config, digits(0, 3).images, reader),
        reader=reader,
        client=0,
        model=backbone.model,
        start=methods.export_state(backbone.model),
        ask=lambda order: "",
    )
    assert told in CraftedEmbedding().lacks(view)
