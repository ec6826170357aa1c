"""The trained model of a finished run, as the start of another run.

A start is a file of weights, whose path is the value of the setting `model.weights`. The file has
the whole plain model of timm, and the names of its classes. The model reads pixels that
`backbone.normalize` has scaled to [-1, 1]. Everybody who takes part in the new run may have this
file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.classifier import head_parameters, replace_heads, take_heads
from fl_vitlora.storage.checksummed import (
    DamagedFileError,
    digest_of,
    read_sealed,
    read_sealed_metadata,
    write_sealed,
)
from fl_vitlora.storage.files import make_folder

START = "start"  # the key of the description in the metadata of the file
NAMED = 16  # hexadecimal digits of the name of a file
BIAS = "patch_embed.proj.bias"
PLAIN = "plain images"


@dataclass(frozen=True, kw_only=True)
class Start:
    """The trained model of a finished run.

    Attributes:
        run: The folder of the run, as the user named it.
        digest: The checksum of the run's `model.safetensors`.
        model: The name of the run's model.
        reads: The images that the model reads, as a text: `PLAIN`, or a text about ciphertext.
        holds_key: True if a key was put into the model. In this case everybody who also has the
            public model can compute the key.
        reveals_part_of_key: True if the patch embedding was trained on ciphertext.
        class_names: The names of the classes, in the order of the head's outputs.
        tensors: The tensors of the plain model of timm, by name.
    """

    run: str
    digest: str
    model: str
    reads: str
    holds_key: bool
    reveals_part_of_key: bool
    class_names: tuple[str, ...]
    tensors: Mapping[str, Tensor]

    @property
    def told(self) -> str:
        """Returns a text that says where the weights come from."""
        return f"the run {self.run} (checksum {self.digest}), for {self.reads}"

    def write(self, folder: Path) -> Path:
        """Writes the file, whose name depends on its content, and returns its path.

        Raises:
            WriteError: If the file cannot be written.
        """
        described = {
            "run": self.run,
            "digest": self.digest,
            "model": self.model,
            "reads": self.reads,
            "holds_key": self.holds_key,
            "reveals_part_of_key": self.reveals_part_of_key,
            "class_names": list(self.class_names),
        }
        metadata = {START: json.dumps(described, ensure_ascii=False, sort_keys=True)}
        make_folder(folder)
        path = folder / f"{digest_of(self.tensors, metadata)[:NAMED]}.safetensors"
        write_sealed(path, dict(self.tensors), metadata)
        return path

    def fill(self, model: Any, name: str, classes: Sequence[str] | int) -> tuple[str, ...]:
        """Loads the trained model into a model without a head, in place, and adds new heads.

        Args:
            model: The model, as timm builds it.
            name: The name of the model, for messages.
            classes: The names of the classes, or their number. If the finished run has a class of
                the same name, the rows of this class in the heads are kept; all other rows are
                zero.

        Returns:
            Notes for the user.

        Raises:
            UserError: If the run had another model; the message names a tensor.
        """
        number = classes if isinstance(classes, int) else len(classes)
        replace_heads(model, number)
        heads = head_parameters(model)
        projection = model.patch_embed.proj
        if projection.bias is None and BIAS in self.tensors:
            projection.bias = nn.Parameter(torch.zeros(projection.out_channels))
        body = {n: tensor for n, tensor in self.tensors.items() if n not in heads}
        expected = {n: tensor for n, tensor in model.state_dict().items() if n not in heads}
        for tensor in sorted({*body, *expected}):
            theirs, ours = (_shape_of(all_of.get(tensor)) for all_of in (body, expected))
            if theirs != ours:
                raise UserError(
                    f"model.init_from {self.run}: {tensor} has {theirs} in that run and {ours} in "
                    f"{name}; choose the model of that run: model.name={self.model}, with its sizes"
                )
        model.load_state_dict(body, strict=False)
        where = f"the model starts from {self.told}"
        if isinstance(classes, int):
            return (where,)
        common = take_heads(
            model, self.tensors, self.class_names, classes, f"model.init_from {self.run}"
        )
        rest = "" if common == number else "; the others start at zero"
        return (f"{where}; the head keeps {common} of {number} classes by their names{rest}",)


def start_of(config: ModelConfig) -> Start | None:
    """Returns the start in the file that `model.weights` names; None for all other weights.

    Raises:
        UserError: If the settings name a run to start from, but `model.weights` does not name a
            file with a start.
    """
    path = Path(config.weights).expanduser()
    described = None
    if path.is_file():
        try:
            described = read_sealed_metadata(path).get(START)
        except DamagedFileError:  # a file of another format
            described = None
    if described is not None:
        tensors, metadata = read_sealed(path)
        known = json.loads(metadata[START])
        names = tuple(known.pop("class_names"))
        for name in ("holds_key", "reveals_part_of_key"):  # older files lack these entries
            known.setdefault(name, known["reads"] != PLAIN)
        return Start(**known, class_names=names, tensors=tensors)
    if config.init_from is not None:
        raise UserError(
            f"model.init_from {config.init_from}: expected model.weights with the file that a "
            "simulation makes of that run, in the folder .given-models beside its run folder, got "
            f"{config.weights}"
        )
    return None


def _shape_of(tensor: Tensor | None) -> str:
    return "no such tensor" if tensor is None else f"the shape {tuple(tensor.shape)}"
