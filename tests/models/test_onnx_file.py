"""A model is written as a file of ONNX, which onnxruntime computes without PyTorch."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.onnx_file import open_onnx, write_onnx
from fl_vitlora.storage.files import WriteError
from tests.conftest import random_vit

onnx = pytest.importorskip("onnx", reason="needs pip install -e '.[onnx]'")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(path, random_vit(), 10, {"class_names": '["é", "b"]'})
    return path


@pytest.mark.parametrize("number", [1, 2, 5])
def test_any_number_of_images_has_the_logits_of_the_model(
    number: int, written: Path, images: Tensor
) -> None:
    with torch.no_grad():
        expected = random_vit().model(normalize(images))[:number]
    found = open_onnx(written)(normalize(images[:number]))
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_the_file_says_what_it_reads_and_is_private(written: Path) -> None:
    model = onnx.load(str(written))
    (given,), (answer,) = model.graph.input, model.graph.output
    sides = [one.dim_param or one.dim_value for one in given.type.tensor_type.shape.dim]
    assert given.name == "pixel_values"
    assert sides == ["batch", 3, 16, 16]
    assert "(q / 255 - 0.5) / 0.5" in given.doc_string
    assert answer.name == "logits"
    assert [one.dim_param or one.dim_value for one in answer.type.tensor_type.shape.dim][1:] == [10]
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "class_names": '["é", "b"]'
    }
    assert written.stat().st_mode & 0o777 == 0o600


@contextlib.contextmanager
def opened_for_writing() -> Iterator[dict[Path, int]]:
    """Inside a `with` block, notes which files of ONNX are written, in folders of which mode."""
    found, listening = dict[Path, int](), True

    def hear(event: str, given: tuple[Any, ...]) -> None:
        writes = listening and event == "open" and "w" in str(given[1])
        if writes and str(given[0]).endswith(".onnx"):
            found[Path(given[0])] = Path(given[0]).parent.stat().st_mode & 0o777

    sys.addaudithook(hear)  # such a function cannot be removed again
    try:
        yield found
    finally:
        listening = False


def test_nobody_else_can_read_the_file_while_it_is_written(tmp_path: Path) -> None:
    folder, before = tmp_path / "public", os.umask(0)
    try:
        folder.mkdir()
        with opened_for_writing() as found:
            write_onnx(folder / "model.onnx", random_vit(), 10, {})
    finally:
        os.umask(before)
    assert set(found.values()) == {0o700}
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    assert (folder / "model.onnx").stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    try:
        with pytest.raises(WriteError, match=r"model\.onnx cannot be written: File too large"):
            write_onnx(tmp_path / "model.onnx", random_vit(), 10, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_nothing_about_the_machine_that_made_it(written: Path) -> None:
    content = written.read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content
    assert str(Path.home()).encode() + b"/" not in content


class Branching(nn.Module):
    """A model whose computation depends on its input, which cannot be traced."""

    def forward(self, images: Tensor) -> Tensor:
        total = images.flatten(1).sum(dim=1, keepdim=True)
        return total if float(total.sum()) > 0 else -total


class Counting(nn.Module):
    """A model that can be traced only for the number of images of the example."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).sum(dim=1).reshape(len(images), 1)


@pytest.mark.parametrize(
    ("made", "told"),
    [(Branching, "because PyTorch cannot trace it: "), (Counting, "only for a fixed number")],
)
def test_a_model_that_cannot_be_traced_is_refused_in_one_line(
    made: type[nn.Module], told: str, tmp_path: Path
) -> None:
    model = replace(random_vit(), model=made().eval())
    with pytest.raises(UserError, match=told) as error:
        write_onnx(tmp_path / "model.onnx", model, 1, {})
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    wanted = f"needs the library {package}; install it: pip install 'fl_vitlora[onnx]'"
    with pytest.raises(UserError, match=re.escape(wanted)):
        write_onnx(tmp_path / "model.onnx", random_vit(), 10, {})
