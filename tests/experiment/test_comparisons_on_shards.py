"""Comparisons and searches on shards that owners made elsewhere: every run has its own label."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import fl_vitlora as fv
import strategies
from fl_vitlora.config import Config
from fl_vitlora.config.grid import read_grid, to_tree
from fl_vitlora.config.search import read_search
from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.known_runs import with_seed_of_shards
from fl_vitlora.experiment.search_checks import check_search
from tests.made_up_owners import make_folder, program

OWNERS, SEED = 2, 7
AXES = {"encryption.scope": ["shared", "client"]}


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two owners, whose shards have the seed 7 and the scope client."""
    folder = tmp_path_factory.mktemp("owners")
    for owner in range(OWNERS):
        make_folder(folder / f"own {owner}", seed=owner, each=8)
        encrypt(folder, owner)
    return folder


def encrypt(folder: Path, owner: int, *words: str) -> None:
    place = folder / "site" / f"owner {owner}"
    ring, key = folder / f"{owner}.key", folder / "keys" / f"client-{owner:05d}.key"
    given = ("--client", owner, "--key", ring, "--model", "vit_letters_16", "--storage-key", key)
    same = ("--scope", "client", "--seed", SEED)
    program("encrypt", folder / f"own {owner}", place, *given, *same, *words)


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
        check_search(plan, strategies.load_for)
    assert {"seed", "training.epochs"} <= plan.typed({"training.epochs": "2"})
    assert "clients" not in plan.typed({})


def test_what_is_stored_has_only_the_settings_that_somebody_has_written(owners: Path) -> None:
    """If a stored default counted as written, the stored comparison or search would be refused."""
    given = settings_on(owners, clients=OWNERS)
    grid = read_grid({"compare": {"data.shards": [given.pop("data.shards")]}}, given)
    again = read_grid(to_tree(grid), {})
    assert again == grid
    assert again.cells[0].typed == grid.cells[0].typed
    assert {"clients", "data.shards"} <= again.cells[0].typed
    assert not {"seed", "encryption.scope"} & again.cells[0].typed
    plan = read_search({"search": {"training.epochs": [1, 2]}}, settings_on(owners))
    assert read_search(plan.to_tree(), {}).typed({}) == plan.typed({})
    best = plan.stored({"training.epochs": "2"})
    assert (best["training"], "seed" in best, "clients" in best) == ({"epochs": 2}, False, False)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 7\nclients: 2\nencryption: {scope: client}", ""),
        ("rounds: 1", ""),
        ("seed: 0", "seed 0: the shards"),
        ("clients: 20", "clients 20: the shards"),
        ("encryption: {scope: shared}", "encryption.scope shared: the shards"),
        ("seeds: [7, 0]", ", seed 0: seed 0: the shards"),
        ("compare: {encryption.scope: [client, shared]}", "cell shared, seed 0: encryption.scope"),
        ("compare: {training.epochs: [1, 2]}", ""),
        ("search: {training.epochs: [1, 2]}\nclients: 20", "clients 20: the shards"),
    ],
)
def test_a_file_is_checked_as_it_runs(
    owners: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    file = tmp_path / "mine.yaml"
    data = {"shards": str(owners / "site"), "storage_keys": str(owners / "keys")}
    file.write_text(f"{text}\n{write_yaml({'data': data})}")
    try:
        program("check", file)
    except SystemExit as ended:
        assert ended.code == 2
    shown = capsys.readouterr()
    assert bool(shown.out) is not bool(told)
    assert told in shown.err
    assert shown.err.count("\n") == bool(told)


def test_runs_are_labelled_with_the_seed_of_the_shards_if_no_seed_is_written(owners: Path) -> None:
    grid = with_seed_of_shards(read_grid({"compare": AXES}, settings_on(owners)))
    assert [config.seed for _, config in grid.runs] == [SEED, SEED]
    assert read_grid(to_tree(grid), {}).seeds == (SEED,)
    written = read_grid({"compare": AXES, "seeds": [0]}, settings_on(owners))
    assert with_seed_of_shards(written) is written
    elsewhere = read_grid({"compare": AXES}, settings_on(owners / "nowhere"))
    assert with_seed_of_shards(elsewhere) is elsewhere


@pytest.mark.slow
def test_a_run_has_the_settings_of_its_label_or_is_refused_and_is_run_once(
    owners: Path, tmp_path: Path
) -> None:
    """A value that equals the default is also a value that the user has written."""
    place = shutil.copytree(owners, tmp_path / "copy")
    given = settings_on(place, out=str(tmp_path / "grid"), compare=AXES, seeds=[0, SEED])
    done = fv.compare(given)
    (run,) = done.runs
    assert (run.config.encryption.scope, run.config.seed) == ("client", SEED)
    told = "the shards, for example"
    assert list(done.problems) == ["shared, seed 0", "shared, seed 7", "client, seed 0"]
    assert all(told in problem for problem in done.problems.values())
    assert run.folder.name == "client-seed7"

    again = fv.compare(given, callbacks=[Refusing()])
    assert [known.folder for known in again.runs] == [run.folder]
    (run.folder / "result.json").unlink()  # the program was killed
    again = fv.compare({**given, "compare": {"encryption.scope": ["client"]}, "seeds": [SEED]})
    assert [known.folder for known in again.runs] == [run.folder]

    for shard in (place / "site").rglob("client-00001-test.safetensors"):
        plain = shard.with_name("other.safetensors")  # the files of a run are second names
        shutil.copy(shard, plain)
        plain.replace(shard)
    again = fv.compare({**given, "seeds": [SEED]}, callbacks=[Refusing()])
    assert [known.folder for known in again.runs] == [run.folder]
    shutil.rmtree(place / "own 1")
    make_folder(place / "own 1", seed=3, each=8)
    encrypt(place, 1, "--replace")
    again = fv.compare({**given, "compare": {"encryption.scope": ["client"]}, "seeds": [SEED]})
    assert [known.folder.name for known in again.runs] == ["client-seed7-again1"]


class Refusing(fv.Callback):
    """Fails if a run begins."""

    def on_run_begin(self, config: Config) -> None:
        assert config.encryption.scope == "shared" or config.seed != SEED, "the run has ended"
