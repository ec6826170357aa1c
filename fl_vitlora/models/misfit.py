"""Finds the differences between the tensors of a file of weights and the tensors of a model.

timm converts a file of weights: it changes names and resamples position embeddings. A tensor of the
file is used if its numbers are in one of the converted tensors. Heads, decoders, and tokens that
only pre-training uses may be in the file without being in the model.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.models.weight_file import UNREADABLE, one_line

Convert = Callable[[dict[str, Tensor], nn.Module], Mapping[str, Any]]

# Parts that a file may contain without being in the model: a pattern for a component of a tensor's
# name, and the name of the part.
BESIDE: Mapping[str, str] = {
    r"(cls_|aux_|lm_|dino_|ibot_)?heads?(_dist)?": "a head",
    r"classifiers?|fc|pre_logits|last_linear|projection_head|projectors?|predictor": "a head",
    r"decoder(_\w+)?": "a decoder",
    r"mask_token": "a mask token",
    r"text(_model|_encoder|_projection)?|logit_(scale|bias)|token_embedding": "a text encoder",
}
VISUAL = "visual."  # prefix of the image encoder's names in CLIP's files; other names are for text
# Tensors that timm's filters omit, because a model computes them from its sizes.
COMPUTED = ("relative_position_index", "attn_mask", "periods", "bias_mask")
POOLING = "attn_pool."  # prefix of the names of a pooling head
MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """The differences between the tensors of a file and the tensors of a model.

    Attributes:
        missing: The names of the tensors that only the model has.
        unused: The names of the tensors that only the file has, and that must not be ignored.
        shapes: Texts about tensors whose shape or type in the file differs from that in the model.
        dropped: The names of the tensors that only the file has, and that may be ignored, for
            example the tensors of heads.
    """

    missing: list[str]
    unused: list[str]
    shapes: list[str]
    dropped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unused or self.shapes)

    def __str__(self) -> str:
        parts = []
        if self.missing:
            parts.append(f"{named(self.missing)} missing in the file")
        if self.unused:
            parts.append(f"{named(self.unused)} not used by the model")
        if self.shapes:
            more = f" and {len(self.shapes) - 1} more" if len(self.shapes) > 1 else ""
            parts.append(f"{self.shapes[0]}{more}")
        return "; ".join(parts) + _nearest(self.missing, [*self.unused, *self.dropped])


def compare(
    model: nn.Module,
    own: Mapping[str, Tensor],
    convert: Convert | None,
    others: Iterable[str],
    *,
    pooling: bool,
) -> tuple[dict[str, Tensor], Misfit]:
    """Converts the tensors of a file and compares them with the model.

    Args:
        model: The model without a head.
        own: The tensors of the file that belong to the model, by the names in the model.
        convert: timm's function that converts checkpoints for this model, or None if there is none.
        others: The names of the other tensors of the file.
        pooling: True if a pooling head in the file may be ignored.

    Returns:
        The tensors that the model uses, and the differences between file and model.
    """
    expected = model.state_dict()
    made, problem = _converted(model, own, convert)
    computed = {name for name, _ in model.named_buffers()} - expected.keys()
    surplus = [name for name in made if name not in expected and name not in computed]
    surplus += [*_lost(own, made, computed), *others]
    text = any(name.startswith(VISUAL) for name in own)
    allowed = [
        name
        for name in surplus
        if beside(name)
        or (text and not name.startswith(VISUAL))
        or (pooling and name.startswith(POOLING))
    ]
    shapes = [
        told
        for name, tensor in made.items()
        if name in expected and (told := _difference(name, tensor, expected[name]))
    ]
    misfit = Misfit(
        missing=[name for name in expected if name not in made],
        unused=[name for name in surplus if name not in allowed],
        shapes=shapes,
        dropped=allowed,
    )
    if problem is not None and not misfit:
        misfit.shapes.append(f"timm cannot convert the tensors ({problem})")
    return {name: tensor for name, tensor in made.items() if name in expected}, misfit


def _converted(
    model: nn.Module, own: Mapping[str, Tensor], convert: Convert | None
) -> tuple[dict[str, Any], str | None]:
    """Returns the converted tensors, or the unchanged tensors and the reason for the failure."""
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            return dict(own if convert is None else convert(dict(own), model)), None
    except UNREADABLE as error:  # a tensor is missing or has another shape
        return dict(own), one_line(error)


def beside(name: str) -> str | None:
    """Returns which part outside of the encoder a tensor belongs to; None for the encoder.

    The function looks only at the name of the tensor.

    Example:
        >>> beside("head.weight"), beside("decoder_blocks.0.norm1.bias"), beside("blocks.0.fc.bias")
        ('a head', 'a decoder', None)
    """
    for part in name.split("."):
        if part.isdigit():  # the tensor belongs to the blocks of an encoder
            return None
        for pattern, what in BESIDE.items():
            if re.fullmatch(pattern, part):
                return what
    return None


def ignored_part(name: str) -> str:
    """Returns the part that an ignored tensor belongs to."""
    return beside(name) or ("a pooling head" if name.startswith(POOLING) else "a text encoder")


def _lost(own: Mapping[str, Tensor], made: Mapping[str, Any], computed: set[str]) -> list[str]:
    """Lists the tensors of a file whose numbers are in none of the converted tensors.

    Two kinds of tensors are not listed: tensors that the model itself computes, and biases of
    zeros.
    """
    results = {name: tensor for name, tensor in made.items() if isinstance(tensor, Tensor)}
    origins = {name: _origins(tensor, own) for name, tensor in results.items()}
    kept = {origin for found in origins.values() for origin in found}
    return [
        name
        for name, tensor in own.items()
        if name not in kept
        and (name not in made or origins.get(name))  # else its numbers were computed anew
        and not (name in computed or name.rpartition(".")[2] in COMPUTED)
        and not (name.endswith("bias") and not tensor.any())
    ]


def _origins(tensor: Tensor, own: Mapping[str, Tensor]) -> list[str]:
    """Lists the tensors of a file that share their memory with a converted tensor."""
    place = tensor.data_ptr()
    return [n for n, t in own.items() if t.data_ptr() <= place < t.data_ptr() + t.nbytes]


def _difference(name: str, tensor: Any, expected: Tensor) -> str | None:
    """Describes how a tensor of a file differs in shape or type from the model's; None if equal."""
    if not isinstance(tensor, Tensor):
        return f"{name} is not a tensor"
    if tensor.shape != expected.shape:
        return f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected.shape)}"
    if tensor.is_floating_point() != expected.is_floating_point():
        return f"{name} has type {tensor.dtype}, expected {expected.dtype}"
    return None


def named(names: list[str]) -> str:
    """Returns the number of tensors and the names of the first ones, as text.

    Example:
        >>> named(["a"]), named(["a", "b", "c", "d"])
        ('1 tensor (a)', '4 tensors (a, b, c, ...)')
    """
    dots = ", ..." if len(names) > MOST_NAMED else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} tensor{plural} ({', '.join(names[:MOST_NAMED])}{dots})"


def _nearest(missing: list[str], others: list[str]) -> str:
    """Returns a text: the name in the file that is most similar to the first missing name."""
    near = difflib.get_close_matches(missing[0], others, n=1, cutoff=0.5) if missing else []
    return f"; the name in the file most similar to {missing[0]} is {near[0]}" if near else ""
