"""Writes a model as a file of ONNX, and opens such a file with onnxruntime.

PyTorch traces the model with `torch.export` and translates the traced operations. The file computes
with float32, takes any number of images at once, and needs neither PyTorch nor this project.

Letters in shapes: B images, C channels, H × W pixels, K classes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.storage.files import PRIVATE, private_folder_within, writing

ONNX = "model.onnx"
WEIGHTS = "model.onnx.data"  # the weights of a model that is too large for one file of ONNX
INPUT, OUTPUT = "pixel_values", "logits"  # the names that Hugging Face's library Optimum uses
NORMALIZATION = "a byte q of a colour becomes (q / 255 - 0.5) / 0.5"
LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def expect_packages() -> None:
    """Checks that the packages for ONNX are installed.

    Raises:
        UserError: If one of them is missing; the message names the extra that installs them.
    """
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"this export needs the library {package}; install it: "
                "pip install 'fl_vitlora[onnx]'"
            )


def write_onnx(path: Path, ours: Backbone, classes: int, texts: Mapping[str, str]) -> None:
    """Writes a model as a file of ONNX, in the set of operations that PyTorch recommends.

    The input of the written model is float32 (B, C, H, W) with any B, and the output is float32
    (B, K).

    The file appears under its name only when it is complete, and only the current user can read it.

    Args:
        path: The file. The weights of a model of more than 1.5 GB are in a file beside it.
        ours: The model, in evaluation mode and float32.
        classes: The number K of classes.
        texts: The texts to write into the file, by name.

    Raises:
        UserError: If a package for ONNX is missing, PyTorch cannot trace the model, or the file is
            not valid.
    """
    expect_packages()
    program = _traced(ours)
    model = program.model
    if isinstance(model.graph.inputs[0].shape[0], int):
        raise UserError(
            "the model cannot be exported to ONNX, because PyTorch can trace it only for a fixed "
            "number of images"
        )
    _forget_this_machine(model)
    channels, height, width = ours.image_shape
    model.metadata_props.update(texts)
    model.graph.inputs[
        0
    ].doc_string = (
        f"Images (batch, {channels}, {height}, {width}), scaled to [-1, 1]: {NORMALIZATION}."
    )
    model.graph.outputs[0].doc_string = f"Logits (batch, {classes}), in the order of the classes."
    with private_folder_within(path.parent) as place, writing(path):
        program.save(place / path.name)  # nobody else can read the file, not even half of it
        _check(place / path.name, path)
        for file in (place / WEIGHTS, place / path.name):
            if file.exists():
                file.chmod(PRIVATE)
                file.replace(path.with_name(file.name))


def open_onnx(path: Path) -> nn.Module:
    """Returns the model of a file of ONNX, which onnxruntime computes on the CPU."""
    return _OnnxModel(path)


class _OnnxModel(nn.Module):
    """A model that onnxruntime computes.

    Args:
        path: The file of ONNX.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only
        self._session = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images, float32 (B, C, H, W), to logits, float32 (B, K)."""
        (logits,) = self._session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(logits)


def _traced(ours: Backbone) -> Any:
    """Returns the model as PyTorch's exporter translates it, before it is written.

    Raises:
        UserError: If the exporter cannot trace or translate the model for any number of images.
    """
    example = torch.zeros(2, *ours.image_shape)
    try:
        with torch.no_grad(), _quiet():
            return torch.onnx.export(
                ours.model,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:
        reason = error.__cause__ or error
        raise UserError(
            "the model cannot be exported to ONNX, because PyTorch cannot trace it: "
            f"{type(reason).__name__}: {' '.join(str(reason).split())[:300]}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside a `with` block, hides warnings of the exporter, which are for its own developers."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _forget_this_machine(model: Any) -> None:
    """Removes what the exporter notes about each operation, such as paths of source files."""
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.metadata_props.clear()


def _check(path: Path, name: Path) -> None:
    """Checks a file of ONNX against the rules of the format, with the types of all tensors.

    Args:
        path: The file.
        name: The name of the file in an error.

    Raises:
        UserError: If the file breaks a rule.
    """
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(
            f"{name}: the model cannot be exported to ONNX, because the file is not valid: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
