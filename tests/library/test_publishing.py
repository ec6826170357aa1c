"""An export is uploaded to a stand-in of the hub, which stores the bytes; mistakes are one line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from fl_vitlora.command_line import tools
from fl_vitlora.config.export_names import Form, Reads
from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.library.finished import FinishedRun, load_run
from fl_vitlora.library.publishing import find_place, push
from fl_vitlora.models import hub_weights
from fl_vitlora.storage.checksummed import write_sealed
from tests.hub_standin import TOKEN, USER, Hub, Repository
from tests.whole_runs import execute

ROOT = Path(__file__).resolve().parent.parent.parent
# the hub's client hands a file to httpx in a way that httpx will not take for ever
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

CARD = "---\nlibrary_name: timm\n---\n\n# A model\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """Starts a stand-in, and lets the hub's client of this process talk to it alone."""
    with Hub() as standin:
        monkeypatch.setattr(constants, "ENDPOINT", standin.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        forget_the_hub()
        yield standin
    forget_the_hub()


def forget_the_hub() -> None:
    hub_weights.reachable.cache_clear()
    close_session()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder with the files of an export for timm."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "config.json").write_text('{"architecture": "vit"}')
    write_sealed(folder / "model.safetensors", {"a": torch.arange(1000.0)}, {"format": "pt"})
    return folder


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stored(hub: Hub, name: str) -> dict[str, bytes]:
    files = hub.repositories[name].files
    return {file: content for file, content in files.items() if file != ".gitattributes"}


def test_the_hub_gets_the_bytes_of_the_folder(hub: Hub, export: Path) -> None:
    pushed = push(export, find_place("model"))
    name = f"{USER}/model"
    assert stored(hub, name) == content_of(export)
    assert hub.repositories[name].private
    assert pushed.address == f"{hub.address}/{name}"
    assert pushed.files == {file: len(content) for file, content in content_of(export).items()}
    assert pushed.told.startswith(f"pushed to the private repository {hub.address}/{name} (commit")
    assert "config.json (23 B)" in pushed.told


def test_an_empty_private_repository_is_used(hub: Hub, export: Path) -> None:
    hub.repositories[f"{USER}/model"] = Repository(private=True)
    push(export, find_place(f"{USER}/model"))
    assert stored(hub, f"{USER}/model") == content_of(export)


STRANGERS: dict[str, Callable[[Path], Any]] = {
    "owner.key": lambda path: path.write_text("ab" * 32),
    "client-00000.safetensors": lambda path: path.write_bytes(b""),
    "config.yaml": lambda path: path.write_text("clients: 3\n"),
    ".hidden": lambda path: path.write_text(""),
    "shards": lambda path: path.mkdir(),
    "model.onnx": lambda path: path.symlink_to("/etc/hostname"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_nothing_but_an_export_is_uploaded(name: str, hub: Hub, export: Path) -> None:
    STRANGERS[name](export / name)
    with pytest.raises(UserError, match=rf"{name} is not a file of an export; nothing was upl"):
        push(export, f"{USER}/model")
    assert not hub.requests


def test_a_shard_under_the_name_of_a_model_is_not_uploaded(
    hub: Hub, export: Path, tmp_path: Path
) -> None:
    metadata = {"party": "client 0", "part": "train"}
    write_sealed(export / "model.safetensors", {"images": torch.zeros(1)}, metadata)
    with pytest.raises(UserError, match=r"model\.safetensors is a shard; nothing was uploaded"):
        push(export, f"{USER}/model")
    assert not hub.requests


def test_what_the_hub_stores_is_compared(hub: Hub, export: Path) -> None:
    damaged = ""
    hub.damage = lambda name, content: content[:-1] if name == damaged else content
    for number, file in enumerate(content_of(export)):
        damaged = file
        with pytest.raises(UserError, match=f"after the upload, {file} on the hub differs from"):
            push(export, f"{USER}/model{number}")


def test_an_upload_that_fails_leaves_the_export_and_can_be_repeated(hub: Hub, export: Path) -> None:
    before, hub.fails = content_of(export), "commit"
    again = f"; the export is in {export}: to upload it, give the command again"
    with pytest.raises(UserError, match=f"refused with the code 500 .*{again}"):
        push(export, find_place("model"))
    assert content_of(export) == before
    hub.fails = ""
    push(export, find_place("model"))
    assert stored(hub, f"{USER}/model") == before


def test_an_upload_whose_comparison_failed_is_compared_again(hub: Hub, export: Path) -> None:
    hub.fails = "tree"
    with pytest.raises(UserError, match=r"refused with the code 500 .*give the command again"):
        push(export, find_place("model"))
    hub.fails = ""
    with pytest.raises(UserError, match=r"has files, such as README\.md; choose another name"):
        find_place("model")
    hub.requests.clear()
    assert push(export, find_place("model", export)).commit == "c" * 8
    assert not [request for request in hub.requests if "commit" in request]
    (export / "README.md").write_text(f"{CARD}Another text.\n")
    with pytest.raises(UserError, match="which has files"):
        find_place("model", export)
    hub.repositories[f"{USER}/model"].private = False
    (export / "README.md").write_text(CARD)
    with pytest.raises(UserError, match="which has files"):
        find_place("model", export)


def test_a_damaged_upload_is_deleted_before_the_command_is_given_again(
    hub: Hub, export: Path
) -> None:
    hub.damage = lambda name, content: content[:-1]
    first = f"first delete the repository {hub.address}/{USER}/model; the export is in {export}"
    with pytest.raises(UserError, match=first):
        push(export, find_place("model", export))


def taken(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.repositories[f"{USER}/model"] = Repository(private=True, files={"a.bin": b"1"})


def public(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    hub.repositories[f"{USER}/model"] = Repository(private=False)


def away(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    patch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")


MISTAKES: dict[str, tuple[str, Callable[[Hub, pytest.MonkeyPatch], Any], str]] = {
    "no token": ("model", lambda hub, patch: patch.delenv("HF_TOKEN"), "no access token"),
    "a wrong token": (
        "model",
        lambda hub, patch: patch.setenv("HF_TOKEN", "hf_wrong"),
        "does not accept the access token",
    ),
    "no right": ("others/model", lambda hub, patch: None, "access token must not write there"),
    "a name that is taken": ("model", taken, "has files, such as a.bin; choose another name"),
    "a public repository": ("model", public, "which is public; choose another name"),
    "no network": ("model", away, "cannot be reached"),
    "offline": (
        "model",
        lambda hub, patch: patch.setattr(constants, "HF_HUB_OFFLINE", True),
        "cannot be reached",
    ),
    "no such name": ("a/b/c", lambda hub, patch: None, "expected OWNER/NAME or NAME"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_to_do(
    mistake: str, hub: Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, make, told = MISTAKES[mistake]
    make(hub, monkeypatch)
    before = dict(hub.repositories)
    with pytest.raises(UserError, match=told) as error:
        push(export, find_place(name))
    assert f"--push-to-hub {name}" in str(error.value) or f"{USER}/{name}" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert TOKEN not in str(error.value)
    assert hub.repositories == before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> FinishedRun:
    return load_run(execute(tmp_path_factory.mktemp("pushed"), engine).folder)


@pytest.mark.slow
def test_the_program_exports_and_uploads(run: FinishedRun, tmp_path: Path) -> None:
    """In a process of its own, which knows the hub from HF_ENDPOINT alone."""
    with Hub() as hub:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_ENDPOINT": hub.address,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
        }
        words = ["export", str(run.folder), str(tmp_path / "x"), "--push-to-hub", "model"]
        command = [sys.executable, "-c", "from fl_vitlora.command_line.tools import main; main()"]
        done = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert stored(hub, f"{USER}/model") == content_of(tmp_path / "x")
        first, last = done.stdout.splitlines()
        assert first.startswith(f"pushed to the private repository {hub.address}/{USER}/model")
        assert last == f"exported to {tmp_path / 'x'}; its README.md says how to load it"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["timm", "peft", "onnx"])
def test_a_command_whose_upload_failed_is_given_again(
    form: Form, run: FinishedRun, hub: Hub, tmp_path: Path
) -> None:
    if form != "timm":
        pytest.importorskip("onnx" if form == "onnx" else form)
    reads: Reads = "ciphertext" if form == "peft" else "plain"  # peft has no position embedding
    folder, hub.fails = tmp_path / "x", "commit"
    with pytest.raises(UserError, match="to upload it, give the command again"):
        run.export(folder, form, reads=reads, push_to_hub="model")
    hub.fails, before = "", content_of(folder)
    with pytest.raises(UserError, match="is in use"):
        run.export(folder, form, reads=reads)
    run.export(folder, form, reads=reads, push_to_hub="model")
    assert stored(hub, f"{USER}/model") == before == content_of(folder)
    run.export(folder, form, reads=reads, push_to_hub="model")  # the hub has it already
    (folder / "README.md").write_text("Another text.")
    with pytest.raises(UserError, match="is in use, and its files are not those of this export"):
        run.export(folder, form, reads=reads, push_to_hub="other")
    (folder / "README.md").write_bytes(before["README.md"])
    (folder / "own.key").touch()
    with pytest.raises(UserError, match="is in use, and its files are not those of this export"):
        run.export(folder, form, reads=reads, push_to_hub="other")
    assert f"{USER}/other" not in hub.repositories


@pytest.mark.slow
def test_a_mistake_is_one_line_before_anything_is_exported(
    run: FinishedRun, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken(hub, pytest.MonkeyPatch())
    with pytest.raises(SystemExit) as ended:
        tools.main(["export", str(run.folder), str(tmp_path / "x"), "--push-to-hub", "model"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fl-vitlora: --push-to-hub somebody/model: ")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_model_that_holds_the_key_is_not_uploaded(
    hub: Hub, tmp_path: Path, engine: Engine
) -> None:
    adapted = load_run(execute(tmp_path, engine, encryption__adapt=True).folder)
    with pytest.raises(UserError, match="this model for ciphertext holds the key"):
        adapted.export(tmp_path / "x", reads="ciphertext", push_to_hub="model")
    assert not (tmp_path / "x").exists()
    assert not hub.requests
    adapted.export(tmp_path / "x", reads="plain", push_to_hub="model")
    assert stored(hub, f"{USER}/model") == content_of(tmp_path / "x")


@pytest.mark.slow
def test_a_model_for_ciphertext_is_uploaded_with_a_warning(
    run: FinishedRun, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.export(tmp_path / "x", reads="ciphertext", push_to_hub="model")
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 2
    assert "reveals parts of the key" in told[0]
