"""Classes are read from ciphertext under any key, if they show in what a key does not change."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fl_vitlora.attacks.label_reading import LabelReading
from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.attacks.views import ThiefView, WorkerView
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from tests.attacks.made_up_views import digits, encrypted, holder, public, settings, truth

ATTACK, KEYED = LabelReading(images=8), settings(encryption__scope="image")


def view_of(config: Config, known: Shard, shard: Shard) -> WorkerView:
    seen = encrypted(shard, holder(config), 0)
    everyone = public(config, known.images, labels=known.labels)
    return WorkerView(public=everyone, client=0, images=seen.images, labels=None)


def read(config: Config, known: Shard, shard: Shard) -> Figure:
    view = view_of(config, known, shard)
    assert ATTACK.lacks(view) == ""
    (figure,) = ATTACK.score(ATTACK.guess(view), truth(holder(config), [shard], known.images[:2]))
    return figure


def bright_block(count: int, seed: int) -> Shard:
    """Returns noise in which one block is bright; the place of this block is the class."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, 1, 16, 16), generator=draw, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4, :4] += 100
    return Shard(images=images.repeat(1, 3, 1, 1), labels=labels)


def test_most_digits_are_read_though_every_image_has_a_key_of_its_own():
    figure = read(KEYED, digits(0, 400), digits(400, 500))
    assert figure.value > 45
    assert figure.floor is not None
    assert figure.floor < 25
    assert figure.ceiling is not None
    assert figure.ceiling > 90
    assert Outcome(attack="", adversary="", figures=[figure]).verdict == "partly"


def test_a_class_that_shows_in_the_place_of_a_block_alone_is_not_read():
    figure = read(KEYED, bright_block(200, 0), bright_block(200, 1))
    assert (figure.floor, figure.ceiling) == (25, 100)
    assert figure.value < 45
    assert Outcome(attack="", adversary="", figures=[figure]).verdict == "not"


def test_the_labels_beside_the_images_are_not_used():
    known, shard = digits(0, 100), digits(400, 420)
    view = view_of(KEYED, known, shard)
    told = dataclasses.replace(view, labels=(shard.labels + 1) % 10)
    assert torch.equal(ATTACK.guess(view).labels, ATTACK.guess(told).labels)


def test_each_image_is_read_alone():
    """So it does not matter that the attack reads more images than others may use together."""
    view = view_of(KEYED, digits(0, 100), digits(400, 420))
    assert view.images is not None
    fewer = dataclasses.replace(view, images=view.images[:5])
    assert LabelReading.each_alone
    assert torch.equal(ATTACK.guess(fewer).labels, ATTACK.guess(view).labels[:5])
    blank = view.images.clone()
    blank[5:] = 0
    others = ATTACK.guess(dataclasses.replace(view, images=blank)).labels
    assert torch.equal(others[:5], ATTACK.guess(view).labels[:5])


def test_what_cannot_be_read_is_refused_with_the_reason():
    known, shard = digits(0, 60), digits(400, 402)

    def reason(labels: Tensor | None, config: Config = KEYED) -> str:
        view = view_of(config, known, shard)
        return ATTACK.lacks(
            dataclasses.replace(view, public=public(config, known.images, labels=labels))
        )

    assert reason(known.labels) == ""
    assert "50 labelled plain images, and 0" in reason(None)
    assert "and 49 are" in reason(known.labels[:49])
    assert "the same class" in reason(torch.zeros_like(known.labels))
    assert "not encrypted" in reason(known.labels, settings(encryption__steps=[]))
    everyone = view_of(KEYED, known, shard).public
    large = dataclasses.replace(everyone.cipher, image_shape=(3, 96, 96))
    view = dataclasses.replace(
        view_of(KEYED, known, shard), public=dataclasses.replace(everyone, cipher=large)
    )
    assert "at most 12,288 values" in ATTACK.lacks(view)
    thief = ThiefView(public=everyone, client=0, images=None, labels=None, sealed="no")
    assert ATTACK.lacks(thief) == "no"
