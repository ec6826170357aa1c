"""Loads weights into a model only if names and shapes in the file and in the model match.

timm converts a file of weights: it changes names and resamples position embeddings. After the
conversion, timm loads the tensors that match. timm gives no error if the file has a tensor that the
model lacks, or if the file lacks a tensor of the model, which then stays random. This module raises
an error if a tensor is missing on either side: every tensor of the model must be in the file, and
every tensor of the file must be in the model. Heads, decoders, and tokens that only pre-training
uses may be in the file without being in the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.models.misfit import Convert, Misfit, compare, ignored_part, named
from fl_vitlora.models.wrappers import Found, find_model, without_wrapper

DISTILLATION = "dist_token"
POSITION, PATCHES = "pos_embed", "patch_embed.proj.weight"


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
        new_patches: True if the user set a patch size. If `new_patches` is False, weights for
            another patch size are refused.
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
    read = _read(model, tensors, convert, where, pooling=pooling)
    own, place = read.own, read.place
    if read.misfit:
        raise UserError(f"weights {place} do not fit {name}: {read.misfit}")
    if not new_patches:
        _check_patch_size(own, expected, name, place)
    _check_finite(read.converted, place)
    model.load_state_dict(read.converted)
    notes = [*_notes_on(read.found, read.misfit.dropped), *read.notes]
    if not new_grid and POSITION in own and own[POSITION].shape != expected[POSITION].shape:
        notes.append("the position embedding was resampled to the model's grid of patches")
    return tuple(f"weights {place}: {note}" for note in notes)


@dataclass(frozen=True, kw_only=True)
class _Read:
    """The tensors of a file that a model can use, and the differences between file and model.

    Attributes:
        place: The path or origin of the file, and the prefix of the model's names in the file.
        found: The tensors of the chosen copy of the model, as the file has them.
        own: The tensors of the chosen copy that are converted for the model.
        converted: The tensors that the model uses.
        misfit: The differences between the file and the model.
        notes: Notes for the user on tensors that were removed.
    """

    place: str
    found: Found
    own: Mapping[str, Tensor]
    converted: Mapping[str, Tensor]
    misfit: Misfit
    notes: Sequence[str] = ()


def _read(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    convert: Convert | None,
    where: str,
    *,
    pooling: bool,
) -> _Read:
    """Finds the tensors of a model in a file by their names, or else by the names after conversion.

    Raises:
        UserError: When the file has several copies of the model and no rule says which copy to use.
    """
    expected = model.state_dict()
    found = find_model(tensors, expected, where)
    place = f"{where} ({found.prefix}*)" if found.prefix else where
    own, notes = _without_distillation(found.tensors, expected)
    made, misfit = compare(model, own, convert, found.others, pooling=pooling)
    if misfit and convert is not None:  # all tensors of the file may have other names
        plain = without_wrapper(tensors)
        remade, other = compare(model, plain.tensors, convert, plain.others, pooling=pooling)
        if not other:
            return _Read(
                place=place, found=plain, own=plain.tensors, converted=remade, misfit=other
            )
    return _Read(place=place, found=found, own=own, converted=made, misfit=misfit, notes=notes)


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
        UserError: If any tensor contains NaN or infinity; the message names the first three tensors
            with these values.
    """
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"weights {where} contain NaN or infinity in {named(broken)}")


def _notes_on(found: Found, dropped: Iterable[str]) -> list[str]:
    """Returns notes that say which copy was used and which parts were ignored."""
    notes = []
    if found.passed_over:
        others = ", ".join(
            f"{prefix}*" if prefix else "the plain names" for prefix in found.passed_over
        )
        notes.append(f"these tensors were used, and the tensors {others} were ignored")
    if kinds := list(dict.fromkeys(map(ignored_part, dropped))):
        notes.append(f"{' and '.join(kinds)} in the file was ignored")
    return notes
