"""Comparisons and searches on shards that owners made elsewhere: every run has its own label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fl_vitlora as fv
import strategies
from fl_vitlora.config.search import read_search
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import searching
from tests.made_up_owners import make_folder, program

OWNERS, SEED = 2, 7
AXES = {"encryption.scope": ["shared", "client"]}


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two owners, whose shards have the seed 7 and the scope client."""
    folder = tmp_path_factory.mktemp("owners")
    for owner in range(OWNERS):
        make_folder(folder / f"own {owner}", seed=owner, each=8)
        place = folder / "site" / f"owner {owner}"
        ring, key = folder / f"{owner}.key", folder / "keys" / f"client-{owner:05d}.key"
        given = ("--client", owner, "--key", ring, "--model", "vit_letters_16")
        same = ("--storage-key", key, "--scope", "client", "--seed", SEED)
        program("encrypt", folder / f"own {owner}", place, *given, *same)
    return folder


def settings_on(owners: Path, **more: Any) -> dict[str, Any]:
    return {
        "rounds": 1,
        "engine.device": "cpu",
        "engine.workers": 1,
        "data.shards": str(owners / "site"),
        "data.storage_keys": str(owners / "keys"),
        **more,
    }


def test_the_experiment_of_a_search_must_have_the_settings_of_the_shards(owners: Path) -> None:
    space = {"search": {"training.epochs": [1, 2]}, "seed": 0}
    plan = read_search(space, settings_on(owners))
    with pytest.raises(UserError, match=r"seed 0: the shards, .* have 7"):
        searching.check_search(plan, strategies.load_for)
    assert {"seed", "training.epochs"} <= plan.typed({"training.epochs": "2"})
    assert "clients" not in plan.typed({})


@pytest.mark.slow
def test_a_run_has_the_settings_of_its_label_or_is_refused(owners: Path, tmp_path: Path) -> None:
    """A value that equals the default is also a value that the user has written."""
    given = settings_on(owners, out=str(tmp_path / "grid"), compare=AXES, seeds=[0, SEED])
    done = fv.compare(given)
    (run,) = done.runs
    assert (run.config.encryption.scope, run.config.seed) == ("client", SEED)
    told = "the shards, for example"
    assert list(done.problems) == ["shared, seed 0", "shared, seed 7", "client, seed 0"]
    assert all(told in problem for problem in done.problems.values())
