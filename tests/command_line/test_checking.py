"""`fl-vitlora check` says of each file what the run would say, and runs nothing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fl_vitlora.command_line import tools
from fl_vitlora.encryption.client_keys import derive_client_key, write_client_key
from fl_vitlora.encryption.identities import open_or_create_identities
from fl_vitlora.encryption.keys import key_id, open_or_create_ring
from fl_vitlora.experiment.owner_keys import hand_out_keys
from tests.owned_shards import prepare

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = [
    "configs/thousand_fold.yaml",
    "configs/grids/default_job.yaml",
    "configs/searches/default_job.yaml",
]
STRATEGY = """from dataclasses import dataclass
from fl_vitlora.strategy import Strategy, averaged

@dataclass(frozen=True)
class Mine(Strategy):
    def aggregate(self, model, updates, state):
        return {body}, state
"""


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, list[str], list[str]]:
    """Returns the exit code, and the lines on standard output and standard error."""
    code = 0
    try:
        tools.main(["check", *map(str, words)])
    except SystemExit as ended:
        code = int(ended.code or 0)
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err.splitlines()


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_the_project_has_is_valid_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = check(capsys, ROOT / name)
    assert (code, err) == (0, [])
    assert out[0].startswith(f"{ROOT / name}: valid ")
    assert "the images, their classes" in out[0]
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("clinets: 3", "unknown setting 'clinets'; did you mean 'clients'?"),  # codespell:ignore
        ("clients: 0", "clients: expected a number in the range"),
        ("strategy: fedpox", "fedprox"),
        ("strategy: mine:Mine", "add: --trust-strategy mine:Mine"),
        ("encryption: {scope: image, adapt: true}", "every image has its own key"),
        ("clients: 5000", "client"),
        ("compare: {training.epochs: [1, two]}", "training.epochs"),
        ("compare: {strategy: [fedavg, flora]}\nfinetuning: {method: head}", "low-rank matrices"),
        ("search: {training.epochs: [1, 2]}", "expected validation images"),
        ("search: {trainin.epochs: [1, 2]}", "training.epochs"),  # codespell:ignore
        ("a: [", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_file_is_told_as_the_run_tells_it(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{text}\n")
    code, out, err = check(capsys, file)
    assert (code, out) == (2, [])
    (line,) = err
    assert line.startswith(f"fl-vitlora: {file}: ")
    assert told in line


@pytest.mark.parametrize(
    "text",
    [
        "{search}\nevaluation: {{predictor: '{code}'}}",
        "search: {{evaluation.predictor: [plain, '{code}']}}\ndata: {{validation_fraction: 0.2}}",
        "{search}\nstrategy: '{code}'",
        "compare: {{evaluation.predictor: [plain, '{code}']}}",
        "evaluation: {{predictor: '{code}'}}",
    ],
)
def test_code_from_elsewhere_is_not_imported_without_confirmation(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "imported"
    monkeypatch.delitem(sys.modules, "unasked_code", raising=False)  # of the test before
    (tmp_path / "unasked_code.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    search = "search: {training.epochs: [1, 2]}\ndata: {validation_fraction: 0.2}"
    file = tmp_path / "mine.yaml"
    file.write_text(text.format(search=search, code="unasked_code:Part"))
    code, out, err = check(capsys, file)
    assert (code, out, len(err)) == (2, [], 1)
    assert "--trust-strategy unasked_code:Part" in err[0]
    assert not mark.exists()
    check(capsys, file, "--trust-strategy", "unasked_code:Part")
    assert mark.exists()


def test_all_files_are_checked_although_one_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, right = tmp_path / "wrong.yaml", tmp_path / "right.yaml"
    wrong.write_text("round: 2\n")
    right.write_text("rounds: 2\n")
    code, out, err = check(capsys, wrong, right, tmp_path / "nowhere")
    assert code == 2
    assert [line.split(":")[0] for line in out] == [str(right)]
    assert err[1] == f"fl-vitlora: {tmp_path / 'nowhere'}: no such file or folder"


def test_files_of_keys_are_recognised_by_what_is_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = open_or_create_ring(tmp_path / "owner.key").current
    write_client_key(tmp_path / "own", derive_client_key(secret, "client 1", 0))
    open_or_create_identities(tmp_path / "clients.pub", 3)
    names = ["owner.key", "own", "clients.pub"]
    code, out, _ = check(capsys, *(tmp_path / name for name in names))
    assert code == 0
    kinds = ["key ring", "key of one client", "public identity keys"]
    for line, name, kind in zip(out, names, kinds, strict=True):
        assert line.startswith(f"{tmp_path / name}: valid {kind}; checked: ")
    assert key_id(secret) in out[0]
    assert secret.hex() not in "".join(out)


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("00" * 31, 0o600, "64 hexadecimal digits"),
        ("00" * 32, 0o644, "chmod 600"),
        ("hello world", 0o600, "number of a client"),
        ("", 0o600, "64 hexadecimal digits"),
    ],
)
def test_a_damaged_or_readable_key_is_refused(
    text: str, mode: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "owner.key"
    file.write_text(text)
    file.chmod(mode)
    code, _, err = check(capsys, file)
    assert code == 2
    assert told in err[0]


def test_shards_are_read_to_their_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = prepare(tmp_path, {"encryption.at_rest": "ring"})
    shards, ring = tmp_path / "run" / "shards", tmp_path / "owner.key"
    code, out, err = check(capsys, shards, shards / "client-00001.safetensors", "--key", ring)
    assert (code, err) == (0, [])
    assert "folder of shards; checked: the shards of 2 clients" in out[0]
    assert "the shard of client 1 (train)" in out[1]
    hand_out_keys(config, [shards], tmp_path / "storage")
    assert check(capsys, shards, "--storage-keys", tmp_path / "storage")[0] == 0
    assert check(capsys, *(tmp_path / "storage").iterdir())[0] == 0
    code, _, err = check(capsys, shards)
    assert code == 2
    assert "is sealed under storage key" in err[0]
    path = shards / "client-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    code, _, err = check(capsys, shards, "--key", ring)
    assert code == 2
    assert "client-00001" in err[0]


def test_a_strategy_of_ones_own_is_tested_by_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good_mean.py", tmp_path / "bad_mean.py"
    good.write_text(STRATEGY.format(body="averaged(model, updates)"))
    bad.write_text(STRATEGY.format(body="{}"))
    code, out, err = check(capsys, good)
    assert (code, err) == (0, [])
    assert (
        out[-1] == f"{good}: valid strategy; checked: all rules for code of this kind, with "
        "checked_good_mean:Mine"
    )
    code, out, _ = check(capsys, bad)
    assert code == 1
    assert "valid" not in out[-1]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\n", "found none"),
        ("import nowhere_at_all\n", "cannot be imported"),
        ("class A:\n    def observe(self): ...\nclass B(A): ...\n", "A (observer), B (observer)"),
    ],
)
def test_a_file_without_one_class_to_check_is_refused(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    code, _, err = check(capsys, file)
    assert code == 2
    assert told in err[0]


@pytest.mark.parametrize("name", ["fedprox.py", "krum.py"])
def test_a_strategy_of_the_project_is_valid_as_a_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(ROOT / "strategies" / name, tmp_path)
    assert check(capsys, tmp_path / name)[0] == 0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("clients.json", '["north", "south"]', "valid list of client names; checked: the names of"),
        ("clients.json", "[12, 0, 1]", "valid list of client names; checked: the names of 3 cl"),
        ("classes.json", '["ant", "bee"]', "valid list of class names; checked: the names of 2 cl"),
        ("mine.json", '["ant", "bee"]', "valid list of names; checked: 2 different names"),
        ("clients.json", "{}", "cannot be read: expected a list of names"),
        ("mine.json", "[1, 2]", "expected a list with the names of the classes"),
    ],
)
def test_a_list_of_names_is_called_what_it_is(
    name: str, text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    code, out, err = check(capsys, tmp_path / name)
    assert code == (0 if "valid" in told else 2)
    (line,) = out or err
    assert told in line
