"""Files of weights are read as data, whatever their names, and refused in one line."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fl_vitlora.errors import UserError
from fl_vitlora.models.weight_file import read_weights, weights_in_folder

ONE = torch.arange(3.0)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch before 1.6"])
def test_the_content_decides_how_a_file_is_read(tmp_path: Path, suffix: str, kind: str):
    path = tmp_path / f"weights{suffix}"
    if kind == "safetensors":
        save_file({"a.b": ONE}, path)
    else:
        torch.save({"a.b": ONE}, path, _use_new_zipfile_serialization=kind == "torch")
    assert torch.equal(read_weights(path)["a.b"], ONE)


def test_what_training_scripts_store_beside_is_left_out(tmp_path: Path):
    stored = {
        "model": {"w": torch.nn.Parameter(ONE)},
        "args": argparse.Namespace(lr=1.0),
        "epoch": 3,
        "best": [0.5],
        "nothing": None,
    }
    torch.save(stored, tmp_path / "checkpoint.pth")
    found = read_weights(tmp_path / "checkpoint.pth")
    assert list(found) == ["model.w"]
    assert type(found["model.w"]) is torch.Tensor


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_needs_code_is_refused_and_says_so(tmp_path: Path, protocol: int):
    sign, path = tmp_path / "it was run", tmp_path / "weights.pt"
    torch.save({"model": {"w": ONE}, "extra": Touch(sign)}, path, pickle_protocol=protocol)
    with pytest.raises(UserError, match=r"reading it would run code.*save_file") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not sign.exists()


@pytest.mark.parametrize(
    ("write", "expectation"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(b"\0" * 8 + b"{ no header"), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "cannot be read"),
        (lambda path: torch.save(ONE, path), "expected tensors by name"),
        (
            lambda path: torch.save({"epoch": 3}, path),
            r"expected tensors, found only the entries \['epoch'\]",
        ),
        (
            lambda path: torch.save({"a.b": ONE, "a": {"b": ONE}}, path),
            "two tensors have the same name a.b",
        ),
        (
            lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path),
            "but a is sparse, quantised or without",
        ),
        (
            lambda path: torch.save({"a": torch.ones(2, device="meta")}, path),
            "without numbers|read",
        ),
        (lambda path: path.mkdir(), "cannot be read"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, write: Any, expectation: str):
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(UserError, match=expectation) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_a_folder_gives_its_one_file_of_weights(tmp_path: Path):
    with pytest.raises(UserError, match="found none"):
        weights_in_folder(tmp_path)
    (tmp_path / "a.pth").touch()
    assert weights_in_folder(tmp_path).name == "a.pth"
    (tmp_path / "b.pth").touch()
    with pytest.raises(UserError, match=r"found a\.pth, b\.pth"):
        weights_in_folder(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert weights_in_folder(tmp_path).name == "model.safetensors"
