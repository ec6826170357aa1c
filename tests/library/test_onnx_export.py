"""Runs are exported as ONNX: onnxruntime computes the logits of the run, and its classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fl_vitlora.command_line import tools
from fl_vitlora.config.export_names import Reads
from fl_vitlora.errors import UserError
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.library.finished import FinishedRun, load_run
from fl_vitlora.models.backbone import normalize
from tests.whole_runs import execute, owned

onnx = pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")
onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")

pytestmark = pytest.mark.slow

READS: tuple[Reads, ...] = ("plain", "ciphertext")
ADAPTED = {"encryption__adapt": True}
OWN_KEYS = {"encryption__scope": "client", "finetuning__patch_embedding": "aligned"}
MERGED = {
    f"{method}{', adapted' if given else ''}": {"finetuning__method": method, **given}
    for method in ("lora", "lora+patch_embed", "bias", "hta")
    for given in ({}, ADAPTED)
}
WITH_LAYERS: dict[str, dict[str, Any]] = {
    "losa": {"finetuning__method": "losa"},
    "vpt": {"finetuning__method": "vpt"},
    "houlsby": {"finetuning__method": "houlsby"},
    "adaptformer": {"finetuning__method": "adaptformer"},
    "a key for each block": {"encryption__scope": "block"},
    "a key for each client": ADAPTED | OWN_KEYS,
}
SETTINGS: dict[str, dict[str, Any]] = MERGED | WITH_LAYERS


@pytest.fixture(scope="module", params=SETTINGS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, engine: Engine
) -> FinishedRun:
    folder = tmp_path_factory.mktemp("onnx")
    return load_run(execute(folder, engine, **SETTINGS[request.param]).folder)


@pytest.fixture(scope="module")
def client(run: FinishedRun) -> int | None:
    return 2 if run.config.encryption.scope == "client" else None


@pytest.fixture(scope="module")
def pictures(run: FinishedRun) -> Tensor:
    images, _ = owned(run.config)
    return images.test.read(np.arange(20), 16, 16)


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


def test_onnxruntime_has_the_logits_of_the_run(
    run: FinishedRun, client: int | None, pictures: Tensor, tmp_path: Path
) -> None:
    for reads in READS:
        if reads == "plain" and run.config.finetuning.method == "losa":
            with pytest.raises(UserError, match="no model for plain images exists"):
                run.export(tmp_path / reads, "onnx", reads=reads)
            continue
        session = session_of(run.export(tmp_path / reads, "onnx", reads=reads, client=client))
        pixels = normalize(pictures)
        with torch.no_grad():
            expected = run.model(reads, client=client)(pixels)
        for number in (1, len(pixels)):
            (found,) = session.run(["logits"], {"pixel_values": pixels[:number].numpy()})
            difference = np.abs(found - expected[:number].numpy()).max()
            assert difference <= 1e-5 * float(expected.abs().max())


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> FinishedRun:
    return load_run(execute(tmp_path_factory.mktemp("default"), engine).folder)


def test_the_program_writes_a_valid_file_with_class_names_and_normalisation(
    default: FinishedRun, tmp_path: Path
) -> None:
    folder = tmp_path / "x"
    tools.main(["export", str(default.folder), str(folder), "--form", "onnx"])
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.onnx"]
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    told = session_of(folder).get_modelmeta().custom_metadata_map
    assert tuple(json.loads(told["class_names"])) == default.class_names
    assert told["reads"] == "plain images"
    assert told["input"].startswith("pixel_values: float32 (batch, 3, 16, 16), ")
    assert json.loads(told["mean"]) == json.loads(told["std"]) == [0.5] * 3


def test_a_model_for_ciphertext_says_whose_key_it_needs(
    default: FinishedRun, tmp_path: Path
) -> None:
    folder = default.export(tmp_path / "x", "onnx", reads="ciphertext")
    told = session_of(folder).get_modelmeta().custom_metadata_map
    key = default.result["encryption"]["key_id"]
    assert f"encrypted with the key under the secret {key}" in told["reads"]
    assert "must not be resized" in (folder / "README.md").read_text().replace("\n", " ")


def test_the_lines_of_its_card_predict_what_the_run_predicts(
    default: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, _ = owned(default.config)
    plain = images.test.read(np.arange(8), 16, 16)
    for reads, shown in (("plain", plain), ("ciphertext", default.encrypt(plain))):
        folder = default.export(tmp_path / reads, "onnx", reads=reads)  # type: ignore[arg-type]
        text = (folder / "README.md").read_text()
        lines = text.partition("```python\n")[2].partition("```")[0]
        lines = lines.replace("THIS_FOLDER", str(folder))
        capsys.readouterr()
        for image in shown:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "image.png")
            exec(lines.replace("IMAGE", str(tmp_path / "image.png")), {})
        assert tuple(capsys.readouterr().out.split()) == default.predict(plain).classes


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_the_lines_of_its_card_treat_a_file_as_the_run_does(
    fit: Any, default: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = replace(default.config.data, fit=fit, background=(9, 80, 200))
    run = replace(default, config=replace(default.config, data=data))
    lines = run.export(tmp_path / "x", "onnx").joinpath("README.md").read_text()
    lines = lines.partition("```python\n")[2].partition("```")[0]
    lines = lines.replace("THIS_FOLDER", str(tmp_path / "x"))
    rows, columns = np.mgrid[:20, :40]
    bands = [rows * 12, columns * 6, (rows + columns) * 4, 255 - columns * 6]
    path = tmp_path / "image.png"
    Image.fromarray(np.stack(bands, axis=-1).astype(np.uint8), "RGBA").save(path)
    capsys.readouterr()
    scope: dict[str, Any] = {}
    exec(lines.replace("IMAGE", str(path)), scope)
    found = run.predict(path)
    assert tuple(capsys.readouterr().out.split()) == found.classes
    shares = torch.from_numpy(scope["logits"]).double().softmax(dim=1)
    assert torch.allclose(torch.as_tensor(found.probabilities).double(), shares, atol=1e-4)
