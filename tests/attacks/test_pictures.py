"""Attacks show what they recover, beside what it should be, and only if somebody asks for it."""

from __future__ import annotations

from pathlib import Path

import torch

from fl_vitlora.attacks.audit import carry_out
from fl_vitlora.attacks.brightness_flip import BrightnessFlip
from fl_vitlora.attacks.label_reading import LabelReading, Reading
from fl_vitlora.attacks.pictures import (
    CIPHERTEXT,
    FOUND,
    MOST,
    PLAIN,
    beside_nearest,
    from_patches,
)
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.views import WorkerView
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.models.backbone import normalize
from fl_vitlora.reporting.attack_pictures import draw_pictures, picture_name
from tests.attacks.made_up_views import digits, encrypted, holder, public, settings, truth


def outcome(*, pictures: bool) -> Outcome:
    config = settings(encryption__steps="PE")
    shard, keys = digits(0, 12), holder(settings(encryption__steps="PE"))
    view = WorkerView(
        public=public(config, digits(100, 103).images),
        client=0,
        images=encrypted(shard, keys, 0).images,
        labels=None,
    )
    secrets = truth(keys, [shard], digits(100, 103).images)
    return carry_out("flip", BrightnessFlip(images=8), [view], secrets, pictures=pictures)


def test_an_outcome_has_the_recovered_images_beside_the_true_ones():
    shown = outcome(pictures=True).pictures
    assert list(shown) == [PLAIN, CIPHERTEXT, FOUND]
    assert {len(images) for images in shown.values()} == {MOST}
    assert torch.equal(shown[PLAIN], digits(0, MOST).images)


def test_without_a_wish_there_are_no_pictures(tmp_path: Path):
    found = outcome(pictures=False)
    assert found.pictures == {}
    assert draw_pictures(tmp_path, found) is None
    assert list(tmp_path.iterdir()) == []


def test_a_picture_is_written_into_a_private_folder(tmp_path: Path):
    found = outcome(pictures=True)
    path = draw_pictures(tmp_path, found)
    assert path == "attack_pictures/flip-worker.png"
    assert (tmp_path / path).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "attack_pictures").stat().st_mode & 0o077 == 0


def test_an_attack_on_labels_recovers_no_images():
    secrets = truth(holder(settings()), [], digits(0, 1).images)
    reading = Reading(client=0, labels=torch.zeros(1), read_plain=lambda images: images)
    assert LabelReading().pictures(reading, secrets) == {}


def test_the_name_of_a_picture_is_the_name_of_a_file():
    own = Outcome(attack="my.attacks:Mine", adversary="informed server")
    assert picture_name(own) == "my.attacks.Mine-informed-server"


def test_images_in_any_order_stand_beside_those_that_they_resemble():
    own, config = digits(0, 5), settings()
    owned = truth(holder(config), [own], own.images).owned[0]
    shown = beside_nearest(owned, owned.ciphertext[[3, 1]].double(), plain=False)
    assert torch.equal(shown[PLAIN], own.images[[3, 1]])
    assert torch.equal(shown[CIPHERTEXT], owned.ciphertext[[3, 1]])


def test_patches_as_a_model_reads_them_become_images_again():
    images = digits(0, 3).images
    patches = normalize(to_blocks(images, 4)).double()
    assert torch.equal(from_patches(patches, (16, 16), 4).round().byte(), images)
