"""Where the position embedding is trained, the patches of an image follow in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fl_vitlora.attacks.position_closed_form import (
    PATCHES,
    PositionClosedForm,
    patches_of,
)
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import POSITION
from fl_vitlora.strategy import SEVERAL
from tests.attacks.made_up_views import (
    BLOCK,
    digits,
    encrypted,
    holder,
    model_of,
    named,
    public,
    settings,
    start_of,
    trained_round,
    truth,
)

STEP: dict[str, Any] = {
    "finetuning__method": "full",
    "training__optimizer": "sgd",
    "training__epochs": 1,
    "training__learning_rate": 0.1,
}


def observed(images: int = 1, **given: Any) -> tuple[ServerView, Truth]:
    """Three clients train for a round, and the server sees their updates."""
    config = settings(**{**STEP, **given})
    backbone, reader = model_of(config)
    keys = holder(config)
    plain = [digits(images * client, images * (client + 1)) for client in range(3)]
    shards = {client: encrypted(shard, keys, client) for client, shard in enumerate(plain)}
    sight = trained_round(config, backbone, start_of(backbone, head=True), shards)
    others = digits(600, 610).images
    view = ServerView(public=public(config, others, reader), reader=reader, rounds=[sight])
    return view, truth(keys, plain, others)


def test_in_float64_all_patches_follow_exactly():
    backbone, _ = model_of(settings(**STEP))
    model = backbone.model.double()
    model.load_state_dict({n: t.double() for n, t in start_of(backbone, head=True).items()}, False)
    image = normalize(digits(0, 1).images).double()
    F.cross_entropy(model(image), torch.tensor([3])).backward()
    found = dict(model.named_parameters())
    embedding, position = found["patch_embed.proj.weight"].grad, found["pos_embed"].grad
    assert embedding is not None
    assert position is not None
    recovered = patches_of(embedding.flatten(1), position[0, -16:])
    assert (recovered - to_blocks(image, BLOCK)[0]).abs().max() < 1e-10


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_one_step_on_one_image_gives_its_patches_bit_for_bit(decay: float):
    view, true = observed(training__weight_decay=decay)
    attack = PositionClosedForm()
    assert attack.lacks(view) == ""
    guess = attack.guess(view)
    assert set(guess.patches) == {0, 1, 2}
    assert named(attack.score(guess, true))[PATCHES].value == 100


def test_noise_on_the_update_hides_the_patches():
    view, true = observed()
    sight = view.rounds[0]
    draw = torch.Generator().manual_seed(0)
    noisy = [
        replace(
            update,
            delta={n: t + torch.randn(t.shape, generator=draw) for n, t in update.delta.items()},
        )
        for update in sight.updates
    ]
    attack = PositionClosedForm()
    guess = attack.guess(replace(view, rounds=[replace(sight, updates=noisy)]))
    assert named(attack.score(guess, true))[PATCHES].value == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"finetuning__method": "lora+patch_embed"}, "no client sends its position embedding"),
        ({"training__optimizer": "adamw"}, "one step of plain descent"),
        ({"images": 2}, "one step of plain descent"),
        ({"training__epochs": 2}, "one step of plain descent"),
    ],
)
def test_without_these_gradients_the_attack_is_refused(given: dict[str, Any], told: str):
    assert told in PositionClosedForm().lacks(observed(**given)[0])


def test_sums_are_refused():
    view, _ = observed()
    sight = view.rounds[0]
    summed = replace(sight, updates=[replace(sight.updates[0], client=SEVERAL)])
    assert "sum of all updates" in PositionClosedForm().lacks(replace(view, rounds=[summed]))


@pytest.mark.parametrize("part", PARTS)
def test_no_method_but_full_sends_the_position_embedding(part: str):
    backbone, _ = model_of(settings(finetuning__method=part))
    assert (POSITION in methods.trainable(backbone.model)) == (part == "full")
