"""A finished run is audited: each adversary gets what it had, and the outcomes are written."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import simulate
import strategies
from fl_vitlora.attacks.label_counts import BIAS
from fl_vitlora.attacks.results import RULE
from fl_vitlora.attacks.views import (
    InsiderView,
    OutsiderView,
    ServerView,
    ThiefView,
    UserView,
    WorkerView,
)
from fl_vitlora.config import Config
from fl_vitlora.config.attack_names import USUAL
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.adversaries import SEALED, Adversaries, _pairs
from fl_vitlora.experiment.attacked_run import AttackedRun, open_run, settings_of
from fl_vitlora.experiment.attacking import attack_run
from fl_vitlora.experiment.recorded_updates import RecordedRounds, read_round
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.models.reading import WEIGHT
from tests.whole_runs import execute

ALL = USUAL


def opened(folder: Path) -> AttackedRun:
    config = settings_of(folder)
    return open_run(folder, config, strategies.load_for(config))


def outcomes(
    folder: Path, names: tuple[str, ...] = ALL, *, pictures: bool = False
) -> dict[tuple[str, str], Any]:
    config = settings_of(folder)
    strategy = strategies.load_for(config)
    list(attack_run(folder, config, strategy, names, images=8, pictures=pictures))
    written = json.loads((folder / "attacks.json").read_text())
    assert (written["rule"], written["images"]) == (RULE, 8)
    return {(one["attack"], one["adversary"]): one for one in written["attacks"]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    return execute(folder, engine, record_updates=True, fraction=1.0, data__limit=400).folder


def test_every_attack_is_carried_out_or_refused_with_a_reason(recorded: Path):
    found = outcomes(recorded)
    assert {attack for attack, _ in found} == set(ALL)
    for one in found.values():
        assert bool(one["figures"]) != bool(one["reason"])
        assert (one["verdict"] == "not applicable") == bool(one["reason"])
        assert all(f["unit"] in ("%", "") for f in one["figures"])
    assert found["second_order", "thief"]["reason"] == SEALED
    assert found["second_order", "worker"]["verdict"] == "recovered"
    assert found["known_plaintext", "insider"]["verdict"] == "recovered"
    assert found["label_reading", "worker"]["figures"]
    assert found["key_correlations", "server"]["verdict"] in ("recovered", "partly")
    assert found["key_columns", "outsider"]["reason"] == "the model is not adapted to a key"


def test_an_audit_changes_nothing_in_the_run_folder_but_its_own_file(recorded: Path):
    def digests() -> dict[str, bytes]:
        files = (path for path in recorded.rglob("*") if path.is_file())
        return {str(p): p.read_bytes() for p in files if p.name != "attacks.json"}

    before = digests()
    outcomes(recorded, ("label_counts", "membership_loss"))
    assert digests() == before
    assert not [path for path in recorded.glob(".*") if path.is_file()]


def test_an_audit_draws_what_it_recovers_if_somebody_asks(recorded: Path):
    found = outcomes(recorded, ("second_order", "label_counts"), pictures=True)
    assert found["label_counts", "server"]["picture"] is None
    drawn = found["second_order", "worker"]["picture"]
    assert drawn == "attack_pictures/second_order-worker.png"
    assert stat.S_IMODE((recorded / drawn).stat().st_mode) == 0o600
    assert outcomes(recorded, ("second_order",))["second_order", "worker"]["picture"] is None


def test_an_audit_gives_the_same_figures_each_time(recorded: Path):
    first, second = (outcomes(recorded) for _ in range(2))
    assert all(one["figures"] == second[name]["figures"] for name, one in first.items())


def test_an_adversary_has_its_own_part_of_the_run_and_no_secret(recorded: Path):
    run = opened(recorded)
    made = Adversaries(run=run)
    (server,), workers = made.views(ServerView), made.views(WorkerView)
    assert isinstance(server, ServerView)
    assert [sight.round for sight in server.rounds] == [1, 2]
    assert torch.equal(
        server.rounds[1].updates[2].delta[BIAS], read_round(recorded, 2).updates[2].delta[BIAS]
    )
    for client, worker in enumerate(workers):
        assert isinstance(worker, WorkerView)
        assert worker.images is not None
        assert worker.reader is not None
        assert torch.equal(worker.images, run.shard(client).images)
        assert torch.equal(worker.reader.weight, run.final[WEIGHT].flatten(1))
    (thief, *_) = made.views(ThiefView)
    assert isinstance(thief, ThiefView)
    assert (thief.images, thief.labels, thief.reader) == (None, None, None)
    told = made.public.settings
    assert (told.seed, told.out) == (0, None)
    assert told.encryption.key_file == Config().encryption.key_file
    assert run.config.seed == 7


def test_an_insider_alone_knows_images_in_plain_and_few_of_them(recorded: Path):
    run = opened(recorded)
    made = Adversaries(run=run)
    for client, insider in enumerate(made.views(InsiderView)):
        assert isinstance(insider, InsiderView)
        assert insider.images is not None
        assert 0 < len(insider.known) <= len(insider.images) // 2
        assert torch.equal(insider.known, run.plain(client)[: len(insider.known)])
    others = (ServerView, WorkerView, ThiefView, OutsiderView, UserView)
    assert not any(hasattr(view, "known") for kind in others for view in made.views(kind))


def test_the_truth_is_what_the_owner_has(recorded: Path):
    run = opened(recorded)
    true = Adversaries(run=run).truth
    owned = true.owned[1]
    assert torch.equal(true.labels[1], run.shard(1).labels)
    assert torch.equal(run.holder.encrypt(owned.plain, client_party(1)), owned.ciphertext)
    assert not (owned.plain == owned.ciphertext).flatten(1).all(dim=1).any()
    assert torch.equal(owned.others, run.known.images[: len(owned.others)])


def test_members_and_other_candidates_have_the_same_labels(recorded: Path):
    made = Adversaries(run=opened(recorded))
    (user,) = made.views(UserView)
    assert isinstance(user, UserView)
    members = made.truth.members()
    assert members.sum() == (~members).sum()
    assert torch.equal(user.labels[members].sort().values, user.labels[~members].sort().values)


def test_pairs_are_drawn_without_repeating_an_image():
    own, others = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([1, 0, 0, 1])
    ours, theirs = _pairs(own, others, most=9, client=0)
    assert len(ours) == len(set(ours.tolist())) == len(set(theirs.tolist())) == 3
    assert torch.equal(own[ours], others[theirs])
    assert len(_pairs(own, others, most=2, client=0)[0]) == 2


def test_with_secure_sums_attacks_on_single_updates_are_refused(tmp_path: Path, engine: Engine):
    done = execute(
        tmp_path,
        engine,
        record_updates=True,
        fraction=1.0,
        privacy__secure_aggregation=True,
        encryption__at_rest="none",
    )
    of_sums = ("span", "membership_sums", "false_keys", "unequal_weights", "inconsistent_models")
    of_single_updates = ("label_counts", "class_presence")
    names = (*of_single_updates, *of_sums, "key_correlations", "second_order")
    found = outcomes(done.folder, names)
    for attack in of_single_updates:
        assert "only the sum" in found[attack, "server"]["reason"]
    for attack in of_sums:
        (one,) = [one for (name, _), one in found.items() if name == attack]
        assert one["figures"]
    assert found["false_keys", "hostile server"]["verdict"] == "recovered"
    assert found["unequal_weights", "hostile server"]["verdict"] == "recovered"
    assert found["inconsistent_models", "hostile server"]["verdict"] == "not"
    assert found["key_correlations", "server"]["figures"]
    assert found["second_order", "thief"]["figures"]


def test_an_adapted_model_gives_the_key_to_all_but_a_server_that_aligns(
    tmp_path: Path, engine: Engine
):
    given = {"encryption__adapt": True, "rounds": 1}
    own = {"encryption__scope": "client", "finetuning__patch_embedding": "aligned"}
    shared = outcomes(execute(tmp_path / "shared", engine, **given).folder, ("key_columns",))
    assert {one["verdict"] for one in shared.values()} == {"recovered"}
    aligned = outcomes(execute(tmp_path / "own", engine, **given, **own).folder, ("key_columns",))
    assert aligned["key_columns", "worker"]["verdict"] == "recovered"
    assert aligned["key_columns", "server"]["verdict"] == "not"
    assert aligned["key_columns", "outsider"]["verdict"] == "not"


def test_a_run_without_recorded_updates_is_audited_without_them(tmp_path: Path, engine: Engine):
    done = execute(tmp_path, engine, rounds=1)
    assert len(RecordedRounds(done.folder)) == 0
    found = outcomes(done.folder, ("label_counts", "second_order"))
    assert "--record-updates" in found["label_counts", "server"]["reason"]
    assert found["second_order", "worker"]["figures"]
    assert stat.S_IMODE((done.folder / "attacks.json").stat().st_mode) & 0o022 == 0


def test_a_broken_bound_is_told_and_ends_the_audit_with_its_own_exit_code(
    recorded: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["--attack", str(recorded), "--only", "label_counts", "--fail-if"]
    simulate.main([*words, "label_counts.clients counted exactly>100"])
    (recorded / "attacks.json").unlink()
    capsys.readouterr()
    bounds = ["label_counts.presence of a class told>=0", "--fail-if", "verdict>=not applicable"]
    with pytest.raises(SystemExit) as exit_:
        simulate.main([*words, *bounds])
    told = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1
    assert (recorded / "attacks.json").is_file()
    assert len(told) == 2
    assert "label_counts, server: presence of a class told is" in told[0]
    with pytest.raises(SystemExit) as exit_:
        simulate.main([*words, "label_counts.presence of clas told>0"])
    assert exit_.value.code == 2
    assert "did you mean 'presence of a class told'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_audited_is_refused(recorded: Path, tmp_path: Path):
    with pytest.raises(UserError, match="contains no run"):
        settings_of(tmp_path)
    (tmp_path / "config.yaml").write_bytes((recorded / "config.yaml").read_bytes())
    with pytest.raises(UserError, match="not finished"):
        opened(tmp_path)
    (tmp_path / "result.json").write_bytes((recorded / "result.json").read_bytes())
    with pytest.raises(UserError, match="shard of client 0 is missing"):
        opened(tmp_path)
