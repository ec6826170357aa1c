"""A regression draws what a key does not hide, and nothing else."""

from __future__ import annotations

import dataclasses

import torch

from fl_vitlora.attacks.learned_images import SIMILARITY, LearnedImages
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.views import ThiefView, WorkerView
from fl_vitlora.data.shards import Shard
from tests.attacks.made_up_views import digits, encrypted, holder, named, public, settings, truth

ATTACK, KEYED = LearnedImages(images=8), settings(encryption__scope="image")


def view_of(known: Shard, shard: Shard) -> WorkerView:
    seen = encrypted(shard, holder(KEYED), 0)
    return WorkerView(public=public(KEYED, known.images), client=0, images=seen.images, labels=None)


def found(known: Shard, shard: Shard) -> dict[str, Figure]:
    view = view_of(known, shard)
    assert ATTACK.lacks(view) == ""
    guess = ATTACK.guess(view)
    return named(ATTACK.score(guess, truth(holder(KEYED), [shard], known.images[:2])))


def stripes(count: int, seed: int, *, moving: bool) -> Shard:
    """Images with one bright block; its brightness, or its place alone, differs between images."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    for image in images:
        level = 200 if moving else int(torch.randint(20, 250, (), generator=draw))
        row = 4 * int(torch.randint(4, (), generator=draw)) if moving else 4
        image[:, row : row + 4, :] = level
    return Shard(images=images, labels=torch.arange(count) % 4)


def test_what_a_key_does_not_hide_is_drawn_whatever_the_key_is():
    figure = found(stripes(200, 0, moving=False), stripes(40, 1, moving=False))[SIMILARITY]
    assert figure.gain is not None
    assert figure.gain > 0.7


def test_the_place_of_a_block_is_not_drawn_because_the_key_hides_it():
    figure = found(stripes(200, 0, moving=True), stripes(40, 1, moving=True))[SIMILARITY]
    assert figure.gain is not None
    assert figure.gain < 0.1


def test_drawings_of_digits_are_more_similar_than_the_mean_digit():
    figure = found(digits(0, 400), digits(400, 460))[SIMILARITY]
    assert figure.gain is not None
    assert figure.gain > 0.02


def test_each_image_is_drawn_alone():
    view = view_of(digits(0, 100), digits(400, 420))
    assert view.images is not None
    fewer = dataclasses.replace(view, images=view.images[:5])
    whole, part = ATTACK.guess(view).images, ATTACK.guess(fewer).images
    assert LearnedImages.each_alone
    assert torch.allclose(whole[:5], part, atol=1e-6)


def test_what_cannot_be_drawn_is_refused_with_the_reason():
    view = view_of(digits(0, 60), digits(400, 402))
    few = dataclasses.replace(view, public=public(KEYED, digits(0, 20).images))
    assert "50 plain images, and 20" in ATTACK.lacks(few)
    bare = settings(encryption__steps=[])
    plain = dataclasses.replace(view, public=public(bare, digits(0, 60).images))
    assert "not encrypted" in ATTACK.lacks(plain)
    thief = ThiefView(public=view.public, client=0, images=None, labels=None, sealed="it is sealed")
    assert ATTACK.lacks(thief) == "it is sealed"
