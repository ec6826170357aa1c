"""A hub that does not answer costs seconds; what is asked of it are settings."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
from huggingface_hub import HfApi, constants

from fl_vitlora.config import DataConfig
from fl_vitlora.data import hub_datasets
from fl_vitlora.data.sources import load_source
from fl_vitlora.errors import UserError


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the library ask, whatever the environment of the tests says."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_without_a_network_a_name_is_one_line_after_one_question(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
):
    """The library alone asks six times, and waits for half a minute in between."""
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(UserError, match=r"neither 'digits' nor a local path.* --dataset") as told:
        load_source(DataConfig(name="nobody/nowhere"))
    assert "\n" not in str(told.value)
    assert 1 <= len(calls) <= 4  # one question, of which addresses may be several


def test_the_first_question_has_a_limit(monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, Any]] = []

    def question(_: HfApi, name: str, **given: Any) -> None:
        asked.append({"name": name, **given})
        raise TimeoutError

    monkeypatch.setattr(HfApi, "dataset_info", question)
    with pytest.raises(UserError, match="neither 'digits'"):
        load_source(DataConfig(name="nobody/nowhere", revision="v1"))
    assert asked == [{"name": "nobody/nowhere", "revision": "v1", "timeout": hub_datasets.PATIENCE}]
    assert hub_datasets.PATIENCE < 10


def test_configuration_split_and_revision_are_settings(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    images = [{"bytes": b"x", "path": None}] * 2
    rows = datasets.Dataset.from_dict({"image": images, "label": ["a", "b"]}, kinds)

    def give(*given: Any, **named: Any) -> Any:
        asked.append((given, named))
        return datasets.DatasetDict(one=rows, two=rows)

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", give)
    wanted = DataConfig(
        name="some/set", config="fine", revision="v1", train_split="one", test_split="two"
    )
    assert "(the split two)" in load_source(wanted).told
    assert asked == [(("some/set", "fine"), {"revision": "v1"})]
    assert datasets.config.HF_DATASETS_TRUST_REMOTE_CODE is False
    with pytest.raises(UserError, match=r"unknown data\.test_split 'three'"):
        load_source(DataConfig(name="some/set", train_split="one", test_split="three"))


def test_a_configuration_that_is_missing_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']")

    monkeypatch.setattr(HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(UserError, match=r"among: \['a', 'b'\].*--set data\.config=NAME"):
        load_source(DataConfig(name="some/set"))
