"""Loads weights into a model only if their names and shapes match those of the model.

timm converts a file of weights: it changes names and resamples position embeddings. After the
conversion, timm loads the tensors that match. timm gives no error if the file has a tensor that the
model lacks, or if the file lacks a tensor of the model, which then stays random. This module raises
an error if a tensor is missing on either side: every tensor of the model must be in the file, and
every tensor of the file must be in the model. Heads, decoders, and tokens that only pre-training
uses may be in the file without being in the model.
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

from fl_vitlora.errors import UserError
from fl_vitlora.models.weight_file import UNREADABLE, one_line
from fl_vitlora.models.wrappers import Found, find_model, without_wrapper

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
VISUAL = "visual."  # prefix of the image encoder's names in CLIP's files; all others are text
# Tensors that timm's filters omit, because a model computes them from its sizes.
COMPUTED = ("relative_position_index", "attn_mask", "periods", "bias_mask")
POOLING = "attn_pool."
DISTILLATION = "dist_token"
POSITION, PATCHES = "pos_embed", "patch_embed.proj.weight"
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
            parts.append(f"{_tensors(self.missing)} missing in the file")
        if self.unused:
            parts.append(f"{_tensors(self.unused)} not used by the model")
        if self.shapes:
            more = f" and {len(self.shapes) - 1} more" if len(self.shapes) > 1 else ""
            parts.append(f"{self.shapes[0]}{more}")
        return "; ".join(parts) + _nearest(self.missing, [*self.unused, *self.dropped])


def fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    name: str,
    where: str,
    convert: Convert | None = None,
    new_grid: bool = False,
    new_patches: bool = False,
    pooling: bool = False,
) -> tuple[str, ...]:
    """Loads the weights of a file into a model, in place, or raises an error if they do not fit.

    Args:
        model: A model without a head.
        tensors: All tensors of the file, by their dotted names.
        name: The name of the model, for messages.
        where: The path or origin of the file, for messages.
        convert: timm's function that converts checkpoints for this model, or None if there is none.
        new_grid: True if the user set an image size or patch size. If `new_grid` is True, the user
            gets no note that the position embedding was resampled.
        new_patches: True if the user set a patch size.
        pooling: True if a pooling head in the file may be ignored because this variant of the model
            has none.

    Returns:
        Notes for the user: which copy of the model in the file was used, and which tensors were
        ignored or resampled.

    Raises:
        UserError: When a tensor is missing, unused or not finite, or when its shape or type does
            not fit the model.
    """
    expected = model.state_dict()
    found = find_model(tensors, expected, where)
    place = f"{where} ({found.prefix}*)" if found.prefix else where
    own, notes = _without_distillation(found.tensors, expected)
    converted, misfit = _compare(model, own, convert, found.others, pooling=pooling)
    if misfit and convert is not None:  # all tensors of the file may have other names
        plain = without_wrapper(tensors)
        reconverted, other = _compare(model, plain.tensors, convert, plain.others, pooling=pooling)
        if not other:
            found, own, converted, misfit, notes = plain, plain.tensors, reconverted, other, []
    if misfit:
        raise UserError(f"weights {place} do not fit {name}: {misfit}")
    if not new_patches:
        _check_patch_size(own, expected, name, place)
    _check_finite(converted, place)
    model.load_state_dict(converted)
    if not new_grid and POSITION in own and own[POSITION].shape != expected[POSITION].shape:
        notes.append("the position embedding was resampled to the model's grid of patches")
    return tuple(f"weights {place}: {note}" for note in [*_notes_on(found, misfit.dropped), *notes])


def beside(name: str) -> str | None:
    """Returns which part outside of the encoder a tensor belongs to; None for the encoder.

    The function looks only at the name of the tensor.

    Example:
        >>> beside("head.weight"), beside("decoder_blocks.0.norm1.bias"), beside("blocks.0.fc.bias")
        ('a head', 'a decoder', None)
    """
    for part in name.split("."):
        if part.isdigit():  # the tensor belongs to a stack of blocks, hence to an encoder
            return None
        for pattern, what in BESIDE.items():
            if re.fullmatch(pattern, part):
                return what
    return None


def _compare(
    model: nn.Module,
    own: Mapping[str, Tensor],
    convert: Convert | None,
    others: Iterable[str],
    *,
    pooling: bool,
) -> tuple[dict[str, Tensor], Misfit]:
    """Converts the tensors of a file and compares them with the model.

    Returns:
        The tensors that the model uses, and the differences between file and model.
    """
    expected = model.state_dict()
    problem = None
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            made = dict(own if convert is None else convert(dict(own), model))
    except UNREADABLE as error:  # a tensor is missing or has another shape
        made, problem = dict(own), one_line(error)
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
        and (name not in made or origins.get(name))  # otherwise its numbers were computed anew
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


def _without_distillation(
    own: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Removes a distillation token and its position embedding if the model has no such token.

    Returns:
        The remaining tensors, and a list with a note for the user if a token was removed.
    """
    rest = dict(own)
    if DISTILLATION not in own or DISTILLATION in expected:
        return rest, []
    del rest[DISTILLATION]
    position = own.get(POSITION)
    if position is not None and position.ndim == 3:
        rest[POSITION] = torch.cat([position[:, :1], position[:, 2:]], dim=1)
    return rest, ["the distillation token was ignored, because the model has none"]


def _check_patch_size(
    own: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str, where: str
) -> None:
    """Raises an error if the weights are for another patch size and the user has not set this size.

    Raises:
        UserError: When the patch sizes of the file and of the model differ.
    """
    if PATCHES not in own or PATCHES not in expected or own[PATCHES].ndim != 4:
        return
    theirs, ours = own[PATCHES].shape[-1], expected[PATCHES].shape[-1]
    if own[PATCHES].shape[-2:] != expected[PATCHES].shape[-2:]:
        raise UserError(
            f"weights {where} do not fit {name}: {PATCHES} is made for patches of {theirs} pixels, "
            f"expected {ours}; to resample this tensor, set the patch size: --set "
            f"model.patch_size={ours}"
        )


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises an error if a tensor contains NaN or infinity.

    Raises:
        UserError: If any tensor contains NaN or infinity; the message names the first such tensors.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"weights {where} contain NaN or infinity in {_tensors(broken)}")


def _notes_on(found: Found, dropped: Iterable[str]) -> list[str]:
    """Returns notes that say which copy was used and which parts were ignored."""
    notes = []
    if found.passed_over:
        others = ", ".join(
            f"{prefix}*" if prefix else "the plain names" for prefix in found.passed_over
        )
        notes.append(f"these tensors were used, and the tensors {others} were ignored")
    if kinds := list(dict.fromkeys(map(_kind, dropped))):
        notes.append(f"{' and '.join(kinds)} in the file was ignored")
    return notes


def _kind(name: str) -> str:
    """Returns the part that an ignored tensor belongs to."""
    return beside(name) or ("a pooling head" if name.startswith(POOLING) else "a text encoder")


def _tensors(names: list[str]) -> str:
    """Returns the number of tensors and the names of the first ones, as text.

    Example:
        >>> _tensors(["a"]), _tensors(["a", "b", "c", "d"])
        ('1 tensor (a)', '4 tensors (a, b, c, ...)')
    """
    dots = ", ..." if len(names) > MOST_NAMED else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} tensor{plural} ({', '.join(names[:MOST_NAMED])}{dots})"


def _nearest(missing: list[str], others: list[str]) -> str:
    """Returns a text: the name in the file that is most similar to the first missing name."""
    near = difflib.get_close_matches(missing[0], others, n=1, cutoff=0.5) if missing else []
    return f"; the name in the file most similar to {missing[0]} is {near[0]}" if near else ""
