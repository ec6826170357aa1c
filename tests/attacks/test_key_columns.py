"""An adapted patch embedding is its key, for whoever knows the public one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fl_vitlora.attacks.key_columns import KeyColumns
from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.attacks.views import OutsiderView, WorkerView
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from tests.attacks.made_up_views import READER, digits, holder, public, settings, truth

ADAPTED = settings(encryption__adapt=True)
OWN_KEYS = settings(
    encryption__adapt=True, encryption__scope="client", finetuning__patch_embedding="aligned"
)
IMAGES = digits(0, 4)


def trained(reader: PatchReader, seed: int) -> PatchReader:
    """Moves a patch embedding as far as training does: by a tenth of its length."""
    step = torch.randn(reader.weight.shape, generator=torch.Generator().manual_seed(seed))
    return reader.with_weight(reader.weight + 0.1 * step)


@pytest.mark.parametrize("number", range(3))
def test_the_final_model_gives_the_whole_key(number: int):
    keys = holder(ADAPTED, number)
    adapted = trained(keys.adapt(READER, client_party(0)), number)
    view = OutsiderView(public=public(ADAPTED, IMAGES.images), reader=adapted)
    assert KeyColumns().lacks(view) == ""
    figures = KeyColumns().score(KeyColumns().guess(view), truth(keys, [IMAGES] * 3, IMAGES.images))
    assert [figure.value for figure in figures] == [100, 100, 100]


def test_a_worker_finds_the_key_of_its_own_client_and_of_no_other():
    keys = holder(OWN_KEYS)
    view = WorkerView(
        public=public(OWN_KEYS, IMAGES.images),
        reader=keys.adapt(READER, client_party(1)),
        client=1,
        images=None,
        labels=None,
    )
    found, _ = KeyColumns().guess(view)
    true = truth(keys, [IMAGES] * 3, IMAGES.images)
    assert set(found) == {1}
    assert all(torch.equal(found[1][step], key) for step, key in true.keys[1].items())
    assert not torch.equal(found[1]["pixel_shuffling"], true.keys[0]["pixel_shuffling"])


def test_a_model_in_plain_coordinates_gives_what_chance_gives():
    verdicts = []
    for number in range(5):
        view = OutsiderView(public=public(OWN_KEYS, IMAGES.images), reader=trained(READER, number))
        true = truth(holder(OWN_KEYS, number), [IMAGES] * 3, IMAGES.images)
        figures = KeyColumns().score(KeyColumns().guess(view), true)
        verdicts.append(Outcome(attack="", adversary="", figures=figures).verdict)
        assert all(below_half(figure) for figure in figures)
    assert verdicts == ["not"] * 5


def below_half(figure: Figure) -> bool:
    return figure.gain is not None and figure.gain < 0.5


def test_models_that_are_not_adapted_or_not_there_are_refused():
    view = OutsiderView(public=public(settings(), IMAGES.images), reader=READER)
    assert "not adapted" in KeyColumns().lacks(view)
    view = OutsiderView(public=public(ADAPTED, IMAGES.images), reader=None)
    assert "no patch embedding" in KeyColumns().lacks(view)
    each = settings(encryption__adapt=True, encryption__scope="block")
    assert "differently" in KeyColumns().lacks(replace(view, public=public(each, IMAGES.images)))
