"""A whole grid over real Ray: resumed, repaired, and bit for bit what its runs are alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from PIL import Image

import simulate
import strategies
from fl_vitlora import config as configuration
from fl_vitlora.config.grid import Grid, read_grid
from fl_vitlora.config.units import Bytes
from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.encryption.keys import key_id, open_or_create_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import comparison
from fl_vitlora.experiment.comparison import compare, prepare_folder
from fl_vitlora.experiment.known_runs import KnownRuns, has_current_key, is_same, runs_in
from fl_vitlora.experiment.runner import PausedError, run
from fl_vitlora.experiment.shard_reuse import KEPT
from fl_vitlora.experiment.starting import note_other_start
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.models.start import PLAIN, Start
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.reporting.statistics import Record
from fl_vitlora.storage.files import write_atomically

pytestmark = pytest.mark.slow

METHODS = {"finetuning.method": ["head", "lora"]}
TREE: dict[str, Any] = {"title": "Small", "compare": METHODS, "seeds": [0, 1]}
SMALL = {
    "clients": 3,
    "rounds": 1,
    "data.limit": 80,
    "engine.device": "cpu",
    "engine.workers": 2,
}


def small(folder: Path, **tree: Any) -> Grid:
    return read_grid({**TREE, **tree}, {**SMALL, "encryption.key_file": str(folder / "owner.key")})


def start(grid: Grid, folder: Path) -> Iterator[Record]:
    with prepare_folder(folder, grid):
        yield from compare(grid, folder, strategies.load_for)


def state_of(folder: Path) -> dict[str, int]:
    """Returns all files of all runs, each with the time when it was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*-seed*/**/*")
    }


@dataclass(frozen=True)
class Finished:
    folder: Path
    grid: Grid
    first: list[Record]
    records: list[Record]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A grid of which one seed was asked for first, with two cells that cannot do.

    The last of its runs loses its result, as if it had been broken off; then both seeds are asked
    for.
    """
    place = tmp_path_factory.mktemp("comparison")
    folder = place / "grid"
    cases = {
        "impossible": {"data.partition": "pathological"},  # 3 clients cannot hold 10 classes
        "failing": {"training.learning_rate": 1e300},  # no weight stays finite
    }
    first = list(start(small(place, compare=[{"case": cases}, METHODS], seeds=[0]), folder))
    shutil.copy(folder / "table.md", place / "first.md")
    (folder / "lora-seed0" / "result.json").unlink()
    grid = small(place)
    return Finished(folder, grid, first, list(start(grid, folder)))


def test_what_is_refused_or_fails_is_told_and_the_rest_goes_on(finished: Finished) -> None:
    told = [(next(iter(r.labels.values())), r.failed, r.result is None) for r in finished.first]
    assert told == [
        ("impossible", False, True),
        ("failing", True, True),
        ("head", False, False),
        ("lora", False, False),
    ]
    refused, failed = (record.problem for record in finished.first[:2])
    assert refused.startswith("refused: ")
    assert "classes" in refused
    assert failed.startswith("failed: ")
    table = (finished.folder.parent / "first.md").read_text()
    assert refused in table
    assert failed in table


def test_what_is_done_is_kept_and_what_was_broken_off_goes_on_there(
    finished: Finished,
) -> None:
    assert [(r.labels, r.seed, r.folder and r.folder.name) for r in finished.records] == [
        ({"finetuning.method": "head"}, 0, "head-seed0"),
        ({"finetuning.method": "head"}, 1, "head-seed1"),
        ({"finetuning.method": "lora"}, 0, "lora-seed0"),
        ({"finetuning.method": "lora"}, 1, "lora-seed1"),
    ]
    assert finished.records[0].result == finished.first[2].result
    before, after = finished.first[3].result, finished.records[2].result
    assert before is not None
    assert after is not None
    assert before["loss"] == after["loss"]


def test_the_tables_and_pictures_are_there(finished: Finished) -> None:
    lines = {path.stem: path.read_text().splitlines() for path in finished.folder.glob("*.csv")}
    assert {name: len(rows) for name, rows in lines.items()} == {
        "runs": 1 + 4,
        "table": 1 + 2,
        "differences": 1 + 1,
    }
    table = (finished.folder / "table.md").read_text()
    assert table.startswith("# Small\n")
    assert "lora against head" in table
    for name in ("accuracy_over_megabytes", "accuracy_over_trained_share"):
        assert Image.open(finished.folder / "plots" / f"{name}.png").size[0] > 500


def test_a_second_call_runs_nothing(finished: Finished) -> None:
    before = state_of(finished.folder)
    assert len(before) > 20
    assert list(start(finished.grid, finished.folder)) == finished.records
    assert state_of(finished.folder) == before


def test_a_pause_keeps_from_no_run_that_is_done(finished: Finished) -> None:
    watch = Watch()
    watch.pause.set()
    again = compare(finished.grid, finished.folder, strategies.load_for, watch)
    assert list(again) == finished.records


def test_a_comparison_pauses_between_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch()
    trained: list[bool] = []  # when a run begins

    def refuse(*_: object, **__: object) -> NoReturn:
        trained.append(watch.training.is_set())
        watch.training.set()
        if len(trained) == 2:
            watch.pause.set()
        raise UserError("it cannot do")

    monkeypatch.setattr(comparison, "run", refuse)
    with pytest.raises(PausedError, match=r"^after run 2 of 4$"):
        list(compare(small(tmp_path), tmp_path, strategies.load_for, watch))
    assert trained == [False, False]


def test_a_run_that_pauses_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pause(*_: object, **__: object) -> NoReturn:
        raise PausedError("after round 3 of 20")

    monkeypatch.setattr(comparison, "run", pause)
    with pytest.raises(PausedError, match=r"^after round 3 of 20, run 1 of 4$"):
        list(compare(small(tmp_path), tmp_path, strategies.load_for))


def test_the_request_in_the_folder_is_the_same_grid(finished: Finished) -> None:
    tree = yaml.safe_load((finished.folder / "grid.yaml").read_text())
    assert read_grid(tree, {}) == finished.grid


def test_a_run_of_a_grid_is_the_run_alone_bit_for_bit(finished: Finished, tmp_path: Path) -> None:
    """The last one, which runs of another method came before on the same workers."""
    config = replace(finished.grid.runs[-1][1], out=str(tmp_path / "alone"))
    result, alone = run(config, strategies.load("fedavg", {}))
    ours = finished.folder / "lora-seed1" / "model.safetensors"
    assert (alone / "model.safetensors").read_bytes() == ours.read_bytes()
    told = finished.records[-1].result
    assert told is not None
    assert (told["accuracy"], told["loss"]) == (result["accuracy"], result["loss"])


def test_a_run_is_known_by_its_configuration_even_an_older_one(tmp_path: Path) -> None:
    """A folder of another name, whose file lacks the fields that came later."""
    config = small(tmp_path).runs[0][1]
    folder = RunFolder.create(replace(config, out=str(tmp_path / "of" / "any name")))
    folder.write_json("result.json", {})
    tree = configuration.to_mapping(configuration.load(str(folder.path / "config.yaml")))
    del tree["encryption"]["adapt"], tree["data"]["shards_per_client"]
    write_atomically(folder.path / "config.yaml", write_yaml(tree))
    assert runs_in(tmp_path, finished=True) == [(config, folder.path)]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_run_whose_result_was_damaged_is_not_done(tmp_path: Path, content: bytes) -> None:
    config = small(tmp_path).runs[0][1]
    folder = RunFolder.create(replace(config, out=str(tmp_path / "run")))
    folder.write_json("result.json", {})
    assert len(runs_in(tmp_path, finished=True)) == 1
    folder.write("result.json", content)
    assert runs_in(tmp_path, finished=True) == []


def test_a_run_whose_saving_was_told_against_another_reference_is_run_again(tmp_path: Path) -> None:
    """Its figures may not stand in one table with those of today."""
    config = small(tmp_path).runs[0][1]
    folder = RunFolder.create(replace(config, out=str(tmp_path / "run")))
    for known, wire in ((0, {"saving": 54.0}), (1, {"saving": 36.0, "saving_with_flower": 33.0})):
        folder.write_json("result.json", {"communication": wire})
        assert len(runs_in(tmp_path, finished=True)) == known
    assert runs_in(tmp_path, finished=False) == []


def test_another_key_file_is_another_run(tmp_path: Path) -> None:
    config = small(tmp_path).runs[0][1]
    elsewhere = small(tmp_path / "elsewhere").runs[0][1]
    RunFolder.create(replace(config, out=str(tmp_path / "run"))).write_json("result.json", {})
    assert [known == elsewhere for known, _ in runs_in(tmp_path, finished=True)] == [False]


def test_a_run_under_a_secret_that_was_rotated_away_is_another_run(tmp_path: Path) -> None:
    """In one table with the others it would be compared as if it had their key."""
    config = small(tmp_path).runs[0][1]
    ring = open_or_create_ring(tmp_path / "owner.key")
    folder = RunFolder.create(replace(config, out=str(tmp_path / "run")))
    folder.write_json("result.json", {"encryption": {"key_id": key_id(ring.current)}})
    assert has_current_key(config, folder.path)
    ring.rotated()
    assert not has_current_key(config, folder.path)
    (tmp_path / "owner.key").unlink()
    assert not has_current_key(config, folder.path)
    plain = replace(config, encryption=replace(config.encryption, steps=()))
    assert has_current_key(plain, folder.path)


def test_a_run_that_lost_its_checkpoints_is_run_anew_elsewhere(tmp_path: Path) -> None:
    config = small(tmp_path).runs[0][1]
    config = replace(config, encryption=replace(config.encryption, steps=()))
    folder = RunFolder.create(replace(config, out=str(tmp_path / "run")))
    assert KnownRuns.of(tmp_path, print).interrupted_run(config) == folder.path
    folder.write("rounds.jsonl", '{"round": 1}\n{"round": 2}\n')
    assert KnownRuns.of(tmp_path, print).interrupted_run(config) is None


def test_a_run_without_a_result_or_of_another_program_is_not_done(tmp_path: Path) -> None:
    config = small(tmp_path).runs[0][1]
    RunFolder.create(replace(config, out=str(tmp_path / "broken off")))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("layers: 12\n")
    (tmp_path / "foreign" / "result.json").write_text(json.dumps({}))
    assert runs_in(tmp_path, finished=True) == []


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="--out FOLDER"):
        prepare_folder(tmp_path, small(tmp_path))
    with pytest.raises(UserError, match="--out FOLDER"):
        prepare_folder(tmp_path / "thesis.txt", small(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_single_run_is_no_grid_but_a_folder_of_runs_is(tmp_path: Path) -> None:
    grid = small(tmp_path)
    RunFolder.create(replace(grid.runs[0][1], out=str(tmp_path / "runs" / "one")))
    with pytest.raises(UserError, match="not a folder of a comparison"):
        prepare_folder(tmp_path / "runs" / "one", grid)
    (tmp_path / "runs" / KEPT).mkdir()  # shards that the run has kept
    prepare_folder(tmp_path / "runs", grid).close()
    assert (tmp_path / "runs" / "grid.yaml").is_file()


def test_a_run_is_the_same_wherever_its_shards_are_kept(tmp_path: Path) -> None:
    config = small(tmp_path).runs[0][1]
    kept = replace(config.data, keep_shards="elsewhere", keep_at_most=Bytes(1))
    assert is_same(replace(config, data=kept), config)
    assert not is_same(replace(config, data=replace(kept, alpha=0.123)), config)


def test_two_processes_are_not_let_at_one_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, grid = tmp_path / "grid", small(tmp_path)
    with prepare_folder(folder, grid):
        before = (folder / "grid.yaml").read_text()
        with pytest.raises(UserError, match="another process runs this comparison"):
            prepare_folder(folder, small(tmp_path, seeds=[7]))
        assert [path.name for path in folder.iterdir()] == ["grid.yaml"]
        assert (folder / "grid.yaml").read_text() == before  # which the first goes on with
        with pytest.raises(SystemExit) as ended:
            simulate.main(["--compare", "head", "--seeds", "7", "--out", str(folder)])
        assert ended.value.code == 2
        assert capsys.readouterr().err == (
            f"simulate.py: grid folder {folder}: another process runs this comparison; "
            "wait until that process has ended\n"
        )
    prepare_folder(folder, grid).close()


def test_runs_of_a_cell_that_start_from_different_models_are_reported(tmp_path: Path):
    """With the old seed and key a run reads ciphertext from its first round on."""
    told, reads = list[str](), dict[str, str]()
    for seed, images in enumerate(["ciphertext", "ciphertext", PLAIN]):
        start = Start(
            run="runs/old",
            digest="0" * 12,
            model="vit_letters_16",
            reads=images,
            holds_key=False,
            reveals_part_of_key=False,
            class_names=("a",),
            tensors={"w": torch.ones(1)},
        )
        weights = str(start.write(tmp_path))
        config = configuration.load(None, {"seed": seed, "model.weights": weights})
        note_other_start("head", config, reads, told.append)
    assert len(told) == 1
    assert "head: the run with seed 2 starts from a model for plain images" in told[0]
    note_other_start("lora", configuration.load(None, {}), reads, told.append)
    assert (len(told), reads) == (1, {"head": "ciphertext"})
