"""A resumed run multiplies with the library with which it began, whatever the cache now says."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.config import Config
from fl_vitlora.experiment.runner import PausedError, run
from fl_vitlora.experiment.stage import Experiment, prepare_server
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.finetuning import products
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.reporting.run_folder import PRODUCTS, fact_of
from fl_vitlora.training.product_choice import cache_file, keep_choices, read_choices
from tests.whole_runs import SMALL

NAMES = tuple("0123456789")
OTHER = dict(zip(products.LIBRARIES, reversed(products.LIBRARIES), strict=True))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(products.VARIABLE, raising=False)


def settings(folder: Path) -> Config:
    paths = {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    return configuration.load(None, {**SMALL, "rounds": 3, "data.limit": 40, **paths})


def prepared(config: Config) -> tuple[str, list[str]]:
    """The library with which a run computes after its preparation, and what its user is told."""
    told: list[str] = []
    strategy = strategies.load_for(config)
    watch = Watch(note=told.append)
    experiment = Experiment(written=config, config=config, strategy=strategy, watch=watch)
    prepare_server(experiment, "cpu", NAMES, "")
    return products.used(), told


def says_the_other() -> None:
    """Lets the cache name the other library for each machine and model in it."""
    assert cache_file().exists()
    keep_choices({machine: OTHER[library] for machine, library in read_choices().items()})


@pytest.mark.parametrize("recorded", products.LIBRARIES)
def test_the_recorded_library_is_used_although_the_cache_names_the_other(
    recorded: str, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    chosen, _ = prepared(config)
    (tmp_path / "run").mkdir()
    environment = tmp_path / "run" / "environment.json"
    environment.write_text(json.dumps({PRODUCTS: recorded}))
    if recorded == chosen:
        says_the_other()
    assert prepared(config)[0] == recorded


@pytest.mark.parametrize("content", ["{}", '{"products": "blas"}', '{"products": 3}', "{"])
def test_a_folder_that_names_no_library_chooses_as_a_new_run_does(
    content: str, tmp_path: Path
) -> None:
    config = settings(tmp_path)
    chosen, _ = prepared(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text(content)
    assert prepared(config)[0] == chosen
    says_the_other()
    assert prepared(config)[0] == OTHER[chosen]


def test_the_environment_decides_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "environment.json").write_text(json.dumps({PRODUCTS: "mkl"}))
    monkeypatch.setenv(products.VARIABLE, "onednn")
    used, told = prepared(settings(tmp_path))
    assert used == "onednn"
    assert "warning: the run began with mkl, and FL_VITLORA_PRODUCTS changes this" in told


def test_a_run_records_its_library_and_goes_on_with_it(tmp_path: Path, engine: Engine) -> None:
    config, pause = settings(tmp_path), threading.Event()
    strategy = strategies.load_for(config)
    with pytest.raises(PausedError):
        run(config, strategy, Watch(pause=pause, show_round=lambda _: pause.set()), engine=engine)
    recorded = fact_of(tmp_path / "run", PRODUCTS)
    assert recorded in products.LIBRARIES
    says_the_other()
    used: list[str] = []
    watch = Watch(show_round=lambda _: used.append(products.used()))
    run(config, strategies.load_for(config), watch, engine=engine, resume=True)
    assert used == [recorded] * 3
    assert fact_of(tmp_path / "run", PRODUCTS) == recorded
