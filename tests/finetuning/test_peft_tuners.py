"""The tables of peft's tuners name only tuners that exist, and decide their learning rates."""

from __future__ import annotations

import pytest

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, peft_settings, peft_tuners, shelf
from tests.conftest import random_vit

pytest.importorskip("peft")


def rates(method: str, **parameters: float) -> set[float]:
    """Returns the factors on the learning rates of the tensors that a tuner trains."""
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method=method, parameters=parameters), 0)
    given = methods.rates(model)
    tuned = (name for name in methods.trainable(model) if methods.group_of(name) == methods.LORA)
    return {given.get(name, 1.0) for name in tuned}


def test_all_tables_name_tuners_of_the_installed_peft():
    named = peft_tuners.REFUSED.keys() | peft_tuners.CANNOT_MERGE.keys() | peft_tuners.RATES.keys()
    assert named <= peft_tuners.tuners().keys()
    assert not peft_tuners.REFUSED.keys() & peft_tuners.RATES.keys()


@pytest.mark.parametrize("tuner", [*peft_tuners.RATES, "HRA"])
def test_a_tuner_has_the_rate_of_the_table_unless_the_user_sets_another(tuner: str):
    assert rates(f"peft:{tuner}") == {peft_tuners.RATES.get(tuner, 1.0)}
    assert rates(f"peft:{tuner}", tuner_rate=0.5) == {0.5}


def test_the_rate_of_the_head_stays():
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="peft:WAVEFT"), 0)
    heads = [name for name in methods.trainable(model) if methods.group_of(name) == methods.HEAD]
    assert heads and not methods.rates(model).keys() & set(heads)


def test_a_rate_must_be_positive():
    config = FineTuningConfig(method="peft:HRA", parameters={"tuner_rate": 0})
    with pytest.raises(UserError, match="tuner_rate"):
        shelf.method_of(config)


def test_no_tuner_has_a_field_of_that_name_itself():
    for config in peft_tuners.tuners().values():
        assert "tuner_rate" not in {name for name, _, _ in peft_settings.fields_of(config)}
