"""Inverting bright values undoes inversions, and nothing else."""

from __future__ import annotations

from typing import Any

import torch

from fl_vitlora.attacks.brightness_flip import BrightnessFlip, folded
from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.attacks.views import ThiefView, WorkerView
from tests.attacks.made_up_views import (
    digits,
    encrypted,
    holder,
    named,
    public,
    settings,
    truth,
)

ATTACK, PLAIN, OTHERS = BrightnessFlip(images=20), digits(0, 20), digits(100, 120).images
FOLDED, SIMILAR = "similarity to the plain image, folded alike", "similarity to the plain image"


def view_of(**given: Any) -> WorkerView:
    config = settings(encryption__scope="image", **given)
    seen = encrypted(PLAIN, holder(config), 0)
    return WorkerView(
        public=public(config, OTHERS), client=0, images=seen.images, labels=seen.labels
    )


def found(**given: Any) -> tuple[dict[str, Figure], str]:
    view = view_of(**given)
    assert ATTACK.lacks(view) == ""
    secrets = truth(holder(view.public.settings), [PLAIN], OTHERS)
    figures = ATTACK.score(ATTACK.guess(view), secrets)
    return named(figures), Outcome(attack="", adversary="", figures=figures).verdict


def test_pixels_that_keep_their_places_show_the_image_up_to_inversion():
    figures, verdict = found(encryption__steps="PE")
    assert figures[FOLDED].value > 99.9
    floor = figures[SIMILAR].floor
    assert floor is not None
    assert figures[SIMILAR].value > floor
    assert verdict == "partly"


def test_pixels_that_move_show_no_more_than_another_image_of_the_kind():
    figures, verdict = found()
    assert verdict == "not"
    assert all(one.floor is not None and one.value < one.floor + 25 for one in figures.values())


def test_an_inverted_value_and_its_original_are_folded_alike():
    images = digits(0, 2).images
    assert torch.equal(folded(images), folded(255 - images))
    assert folded(images).max() <= 127


def test_what_is_sealed_or_plain_is_not_attacked():
    view = view_of()
    sealed = ThiefView(public=view.public, client=0, images=None, labels=None, sealed="no")
    assert ATTACK.lacks(sealed) == "no"
    assert "not encrypted" in ATTACK.lacks(view_of(encryption__steps=[]))
