"""A finished run is used: its model reads plain images and ciphertext, predicts, and is exported.

Real runs over Flower and Ray. Exactness is shown in float64.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fl_vitlora.command_line import tools
from fl_vitlora.config.export_names import Form, Reads
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.known_runs import KnownRuns
from fl_vitlora.experiment.trained_model import TrainedModel
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.library.finished import FinishedRun, load_run
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import normalize
from fl_vitlora.reporting.run_folder import BEST, RESULT, ROUND, find_run
from fl_vitlora.storage.checksummed import read_sealed, write_sealed
from tests.whole_runs import execute, owned

pytestmark = pytest.mark.slow

ADAPTED = {"encryption__adapt": True}
ALIGNED = {"finetuning__patch_embedding": "aligned"}
OWN = {"encryption__scope": "client"}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain images": {"encryption__steps": []},
    "one key": {},
    "one key, adapted": ADAPTED,
    "a key for each client, adapted, aligned": ADAPTED | ALIGNED | OWN,
    "a key for each client, aligned": ALIGNED | OWN,
    "a key for each client, adapted, mixed": {
        **ADAPTED,
        **OWN,
        "encryption__allow_meaningless": True,
        "evaluation__by": "central",
    },
    "a key for each block": {"encryption__scope": "block"},
    "pairs are merged at the server": {"strategy": "flora", "finetuning__method": "lora"},
    "hta": {"finetuning__method": "hta"},
    "bias": {"finetuning__method": "bias"} | ADAPTED | ALIGNED,
    "losa": {"finetuning__method": "losa"},
}
READS: tuple[Reads, ...] = ("plain", "ciphertext")
FORMS: tuple[Form, ...] = ("timm", "peft")
WITHOUT_KEY = ("plain images", "a key for each client, adapted, aligned")


@pytest.fixture(scope="module", params=SETTINGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(name: str, tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> FinishedRun:
    folder = tmp_path_factory.mktemp("used")
    done = execute(folder, engine, **SETTINGS[name])
    return load_run(done.folder)


@pytest.fixture(scope="module")
def client(name: str) -> int | None:
    return 2 if SETTINGS[name].get("encryption__scope") == "client" else None


@pytest.fixture(scope="module")
def pictures(run: FinishedRun) -> tuple[Tensor, Tensor]:
    images, _ = owned(run.config)
    read = images.test.read(np.arange(len(images.test)), 16, 16)
    return read, torch.from_numpy(images.test.labels)


def trained(run: FinishedRun) -> TrainedModel:
    return run._last


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    found: Tensor = model(normalize(images))
    return found


def test_both_models_say_the_same(
    run: FinishedRun, name: str, client: int | None, pictures: tuple[Tensor, Tensor]
) -> None:
    images, _ = pictures
    whole = trained(run)
    if name == "losa":
        with pytest.raises(UserError, match="mixes patches in the order that the key gave them"):
            whole.for_plain()
        return
    torch.set_default_dtype(torch.float64)
    try:
        for_plain = logits(whole.for_plain(client, torch.float64), images)
        cipher = logits(whole.for_ciphertext(client, torch.float64), whole.encrypt(images, client))
    finally:
        torch.set_default_dtype(torch.float32)
    assert (for_plain - cipher).abs().max() < 1e-10 * for_plain.abs().max()


def test_the_owner_and_a_service_without_the_key_predict_the_same(
    run: FinishedRun, client: int | None, pictures: tuple[Tensor, Tensor]
) -> None:
    images, _ = pictures
    own = run.predict(images, client=client)
    service = run.predict(run.encrypt(images, client), encrypted=True, client=client)
    assert torch.allclose(own.probabilities, service.probabilities, atol=1e-4)
    assert len(own) == len(images)


def test_the_predictions_have_the_accuracy_of_the_run(
    run: FinishedRun, client: int | None, pictures: tuple[Tensor, Tensor]
) -> None:
    images, labels = pictures
    if client is not None:
        pytest.skip("each client measured on its own images")
    right = (run.predict(images).labels == labels).double().mean()
    # rounding may move an image that lies between two classes
    assert abs(float(right) - (run.accuracy or 0)) <= 1 / len(labels)


def test_a_model_for_plain_images_needs_the_key_only_where_the_server_lacks_it(
    run: FinishedRun, name: str, client: int | None
) -> None:
    lost = load_run(run.folder, {"encryption.key_file": str(run.folder / "nowhere.key")})
    if name in WITHOUT_KEY:
        assert isinstance(lost.model("plain"), nn.Module)
        if client is not None:
            with pytest.raises(UserError, match="every client has its own key, so name the client"):
                run.model("ciphertext")
            with pytest.raises(UserError, match="there is no client 4"):
                run.model("plain", client=4)
        return
    if name == "losa":  # has no such model, whoever asks
        return
    with pytest.raises(UserError, match=r"the owners' key ring is needed, but .*nowhere.key"):
        lost.model("plain", client=client)
    assert not (run.folder / "nowhere.key").exists()


def test_timm_opens_the_export(
    run: FinishedRun, name: str, client: int | None, pictures: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    if name == "losa":
        with pytest.raises(UserError, match="cannot be merged into a plain timm model"):
            run.export(tmp_path / "x", reads="ciphertext")
        assert not list((tmp_path / "x").iterdir())
        return
    if SETTINGS[name].get("encryption__scope") == "block":
        for form in FORMS:
            with pytest.raises(UserError, match="its own kernel"):
                run.export(tmp_path / "x", form, client=client)
            assert not list((tmp_path / "x").iterdir())
        return
    images, _ = pictures
    for reads in READS:
        folder = run.export(tmp_path / reads, reads=reads, client=client)
        opened = loaded(folder)
        ours = run.model(reads, client=client)
        expected = logits(ours, images)
        assert torch.allclose(
            logits(opened, images), expected, atol=1e-5 * float(expected.abs().max())
        )
        labels = json.loads((folder / "config.json").read_text())["label_names"]
        assert tuple(labels) == run.class_names


def test_peft_opens_the_export(
    run: FinishedRun, name: str, client: int | None, pictures: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    if SETTINGS[name].get("encryption__scope") == "block" or name in ("losa", "hta"):
        pytest.skip("no plain model, or no change of low rank")
    if name == "pairs are merged at the server":  # their sum is rounded to float32
        with pytest.raises(UserError, match="no weight has changed by a matrix of low rank"):
            run.export(tmp_path / "x", "peft", reads="ciphertext")
        return
    images, _ = pictures
    config = run.config
    base = backbone.build(config.model, len(run.class_names), seed=5).model
    opened = 0
    for reads in READS:
        folder = tmp_path / reads
        try:
            run.export(folder, "peft", reads=reads, client=client)
        except UserError as error:
            assert "pos_embed" in str(error)
            assert reads == "ciphertext" or name not in WITHOUT_KEY
            continue
        assert (folder / "adapter_model.safetensors").stat().st_mode & 0o777 == 0o600
        peft = loaded(folder)
        if name == "one key":
            assert json.loads((folder / "adapter_config.json").read_text())["r"] == 2 * 4
        ours = run.model(reads, client=client)
        expected = logits(ours, images)
        assert torch.allclose(
            logits(peft, images), expected, atol=1e-5 * float(expected.abs().max())
        )
        assert not torch.allclose(logits(base, images), expected, atol=1e-2)
        opened += 1
    assert opened


def loaded(folder: Path) -> nn.Module:
    """Runs the lines of Python of an export's README.md, and returns their model."""
    text = (folder / "README.md").read_text()
    lines = text.partition("```python\n")[2].partition("```")[0]
    scope: dict[str, Any] = {}
    exec(lines.replace("THIS_FOLDER", str(folder)), scope)
    model: nn.Module = scope["model"]
    return model.eval()


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[FinishedRun]:
    yield load_run(execute(tmp_path_factory.mktemp("default"), engine).folder)


def test_history_and_class_names_are_those_of_the_run(default: FinishedRun) -> None:
    assert [line["round"] for line in default.history] == [1, 2]
    assert default.history[-1]["accuracy"] == default.accuracy
    assert default.class_names == tuple("0123456789")


def test_the_best_model_is_that_of_the_best_round(default: FinishedRun) -> None:
    best, last = default.model(best=True), default.model()
    is_last = default.result["best"]["round"] == len(default.history)
    same = all(
        torch.equal(one, other)
        for one, other in zip(best.parameters(), last.parameters(), strict=True)
    )
    assert same == is_last


def changed(run: FinishedRun, folder: Path) -> Path:
    """Returns a copy of a run folder, in which a test may change files."""
    return Path(shutil.copytree(run.folder, folder))


def test_a_best_model_of_another_round_is_refused(default: FinishedRun, tmp_path: Path) -> None:
    """A run that was interrupted may end with another best round than the file has."""
    folder = changed(default, tmp_path / "run")
    state, metadata = read_sealed(folder / BEST)
    write_sealed(folder / BEST, state, metadata | {ROUND: "7"})
    with pytest.raises(UserError, match=r"the best round of the run, got that after round 7"):
        load_run(folder).model(best=True)
    load_run(folder).model()


def test_a_comparison_repeats_runs_that_a_callback_has_ended(
    default: FinishedRun, tmp_path: Path
) -> None:
    folder = changed(default, tmp_path / "run")
    result = json.loads((folder / RESULT).read_text())
    (folder / RESULT).write_text(json.dumps(result | {"stopped": "caller"}))
    config, _ = find_run(folder)
    alone = dataclasses.replace(config, out=None)
    assert KnownRuns.of(tmp_path, print, may_stop=True).finished == [(alone, folder)]
    assert KnownRuns.of(tmp_path, print).finished == []


def saved(folder: Path, images: Tensor) -> Path:
    (folder / "inner").mkdir(parents=True)
    for number, image in enumerate(images):
        place = folder / ("inner" if number % 2 else "") / f"{number}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place)
    return folder


def test_the_program_predicts_files_of_plain_images_and_of_ciphertext(
    default: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = owned(default.config)
    plain = images.test.read(np.arange(6), 16, 16)
    run, table, listed = str(default.folder), tmp_path / "p.csv", tmp_path / "p.json"
    one = saved(tmp_path / "plain", plain)
    other = saved(tmp_path / "cipher", default.encrypt(plain))
    tools.main(["predict", run, str(one), "--out", str(table)])
    tools.main(["predict", run, str(other), "--encrypted", "--out", str(listed)])
    assert capsys.readouterr().out.splitlines()[0] == f"6 predictions in {table}"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = json.loads(listed.read_text())
    assert [row["image"] for row in rows] == [row["image"] for row in whole]
    assert {row["image"] for row in rows} == {
        f"{'inner/' if number % 2 else ''}{number}.png" for number in range(6)
    }
    for row, same in zip(rows, whole, strict=True):
        assert row["class"] == same["class"]
        assert float(row["probability"]) == pytest.approx(same["probability"], abs=2e-6)
        assert set(row) == {"image", "class", "probability", *(f"p:{n}" for n in range(10))}


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such run": (["predict", "NOWHERE", "IMAGES"], "contains no run"),
    "no such image": (["predict", "RUN", "nothing.png"], "no such file"),
    "not an image": (["predict", "RUN", "NOTE"], "expected an image"),
    "an empty folder": (["predict", "RUN", "EMPTY"], "expected images in this folder"),
    "another size": (["predict", "RUN", "LARGE", "--encrypted"], "found 20 × 20"),
    "lossy ciphertext": (["predict", "RUN", "JPEG", "--encrypted"], "ciphertext in a PNG file"),
    "grey ciphertext": (["predict", "RUN", "GREY", "--encrypted"], "red, green and blue"),
    "clear ciphertext": (["predict", "RUN", "CLEAR", "--encrypted"], "without transparency"),
    "turned ciphertext": (["predict", "RUN", "TURNED", "--encrypted"], "tag that turns the image"),
    "deep ciphertext": (["predict", "RUN", "DEEP", "--encrypted"], "8 bits for each"),
    "a client that is not there": (["predict", "RUN", "IMAGES", "--client", "4"], "no client 4"),
    "another ending": (["predict", "RUN", "IMAGES", "--out", "p.xls"], "ends in .csv or .json"),
    "a full folder": (["export", "RUN", "IMAGES"], "is in use"),
    "moved patches in peft": (["export", "RUN", "NEW", "--form", "peft"], "pos_embed"),
    "no command": ([], "required: COMMAND"),
    "another form": (["export", "RUN", "NEW", "--form", "tflite"], "invalid choice: 'tflite'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(
    mistake: str, default: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = MISTAKES[mistake]
    grey = torch.full((1, 3, 16, 16), 7, dtype=torch.uint8)
    places = {"RUN": default.folder, "IMAGES": saved(tmp_path / "images", grey)}
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "NOTE").write_text("x")
    Image.new("RGB", (20, 20)).save(tmp_path / "LARGE.png")
    plain = Image.new("RGB", (16, 16))
    plain.save(tmp_path / "JPEG.jpg")
    plain.convert("L").save(tmp_path / "GREY.png")
    plain.convert("RGBA").save(tmp_path / "CLEAR.png")
    turned = Image.Exif()
    turned[0x0112] = 3
    plain.save(tmp_path / "TURNED.png", exif=turned)
    Image.new("I;16", (16, 16)).save(tmp_path / "DEEP.png")
    names = {"JPEG": "JPEG.jpg"}
    names |= {word: f"{word}.png" for word in ("LARGE", "GREY", "CLEAR", "TURNED", "DEEP")}
    for word in ("NOWHERE", "EMPTY", "NOTE", "NEW", "nothing.png", "p.xls", *names):
        places[word] = tmp_path / names.get(word, word)
    with pytest.raises(SystemExit) as ended:
        tools.main([str(places.get(word, word)) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1
    assert lines[0].startswith("fl-vitlora: ")
    assert expected in lines[0]


@pytest.mark.parametrize("setting", ["local", "image"])
def test_what_no_model_can_do_is_refused(setting: str, tmp_path: Path, engine: Engine) -> None:
    """Clients keep their patch embedding, or every image has its own key."""
    given = {"finetuning__patch_embedding": "local"} if setting == "local" else {}
    scope = "client" if setting == "local" else "image"
    run = load_run(execute(tmp_path, engine, encryption__scope=scope, **given).folder)
    if setting == "local":
        with pytest.raises(UserError, match=r"lacks patch_embed.*the clients kept these"):
            run.model("ciphertext", client=0)
        return
    with pytest.raises(UserError, match="every image has its own key"):
        run.model("plain")
    grey = torch.full((2, 3, 16, 16), 7, dtype=torch.uint8)
    with pytest.raises(UserError, match="every image has its own key"):
        run.export(tmp_path / "x")
    other = grey.clone()
    other[1, 0, 0, 0] = 8
    cipher = run.encrypt(other)
    assert not torch.equal(cipher[0], cipher[1])
    assert torch.equal(run.encrypt(other[1:]), cipher[1:])  # wherever it stands among others
    steps = [bytes(run.encrypt(image[None]).numpy().tobytes()) for image in other]
    assert steps[0] != steps[1]
    assert not torch.equal(run._last.holder.encrypt(grey, "test", "test")[:1], cipher[:1])
    assert torch.equal(
        run.predict(other).probabilities, run.predict(cipher, encrypted=True).probabilities
    )


def test_images_of_two_folders_have_two_names(default: FinishedRun, tmp_path: Path) -> None:
    grey = torch.full((1, 3, 16, 16), 7, dtype=torch.uint8)
    one, other = saved(tmp_path / "one", grey), saved(tmp_path / "other", grey)
    assert default.predict(one).names == ("0.png",)
    assert default.predict([one, other]).names == (f"{one}/0.png", f"{other}/0.png")


def test_a_wrong_export_is_an_error(
    default: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = methods.merge

    def wrong(model: nn.Module) -> None:
        right(model)
        model.get_parameter("blocks.0.attn.qkv.weight").data.mul_(1.05)

    monkeypatch.setattr(methods, "merge", wrong)
    pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
    for form in (*FORMS, "onnx"):
        with pytest.raises(UserError, match="the logits differ from those of the run"):
            default.export(tmp_path / form, form, reads="ciphertext")
        assert not list((tmp_path / form).iterdir())


def test_a_model_that_reads_anything_else_is_refused(default: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown value of reads 'Plain'; did you mean 'plain'"):
        default.model("Plain")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown value of reads 'Plain'; did you mean 'plain'"):
        default.export(tmp_path / "x", reads="Plain")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown form of an export 'onyx'; did you mean 'onnx'"):
        default.export(tmp_path / "x", "onyx")  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()


def test_pixels_of_another_shape_are_refused(default: FinishedRun) -> None:
    with pytest.raises(UserError, match=r"expected bytes .*\(n, 3, 16, 16\), got float32 \(2, 3"):
        default.predict(torch.zeros(2, 3, 8, 8))
