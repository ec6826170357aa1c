"""Finds a model's tensors in a file, whatever prefix the names in the file have.

Training scripts often put a prefix before the names of a model's tensors: `model`, `state_dict`,
`module.` (data parallel), `_orig_mod.` (compiled), `teacher.backbone.` (self-supervised), `model.`
(Lightning). This module needs no list of prefixes: a prefix is any text before names that the model
itself has.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl_vitlora.errors import UserError

TRAINING_STATE = re.compile(
    r"(optimizer|optimiser|optim|(lr_)?scheduler|(\w+_)?scaler|callbacks|loops)(_?state(s|_dict)?|s)?"
)
AVERAGED = re.compile(r"(.*_)?(ema|swa)(_.*)?")
WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "_orig_mod",
    "model_ema",
    "state_dict_ema",
    "teacher",
)
ENOUGH = 0.5  # a copy has more than this share of the names that the best prefix has


@dataclass(frozen=True, kw_only=True)
class Found:
    """The tensors of one model in a file.

    Attributes:
        prefix: The text before the names of the tensors in the file, for example
            ``teacher.backbone.``.
        tensors: The tensors of the chosen copy of the model, by their names without the prefix.
        others: The tensors of the file that do not belong to any copy of the model.
        passed_over: The prefixes of the copies of the model that were not chosen.
    """

    prefix: str
    tensors: dict[str, Tensor]
    others: dict[str, Tensor]
    passed_over: tuple[str, ...] = ()


def find_model(tensors: Mapping[str, Tensor], expected: Collection[str], where: str) -> Found:
    """Finds the tensors of a model in a file.

    A file may contain several copies of the model. This function then chooses the averaged copy
    (for example `model_ema`), or else the teacher. The scripts that write several copies have the
    same preference. If several copies are equally preferred but have different numbers, the file is
    refused.

    Args:
        tensors: All tensors of the file, by dotted names.
        expected: The names of the tensors in the model.
        where: The path or origin of the file, for error messages.

    Returns:
        The tensors of the chosen copy, and the remaining tensors of the file.

    Raises:
        UserError: When several copies differ and no rule says which copy to choose.

    Example:
        >>> file = {"teacher.backbone.a": torch.ones(1), "student.backbone.a": torch.zeros(1)}
        >>> found = find_model(file, ["a"], "FILE")
        >>> found.prefix, found.passed_over
        ('teacher.backbone.', ('student.backbone.',))
    """
    copies = copies_of(tensors, expected)
    chosen, *rest = sorted(copies, key=rank)
    if rest and rank(chosen) == rank(rest[0]) and not _same(tensors, chosen, rest[0]):
        raise UserError(
            f"weights {where} contain several models, {chosen or 'without a prefix'} and "
            f"{rest[0] or 'without a prefix'}; save the tensors of one model in a separate file"
        )
    roots = tuple(_root(other, chosen) for other in rest)
    own, others = {}, {}
    for name, tensor in tensors.items():
        if any(name.startswith(root) and not _closer(name, chosen, root) for root in roots):
            continue
        if name.startswith(chosen) and not (not chosen and _is_training_state(name, tensor)):
            own[name[len(chosen) :]] = tensor
        elif not _is_training_state(name, tensor):
            others[name] = tensor
    return Found(prefix=chosen, tensors=own, others=others, passed_over=tuple(rest))


def copies_of(names: Collection[str], expected: Collection[str]) -> list[str]:
    """Lists the prefixes with which a file has the most names of a model, one for each copy.

    If no name of the model occurs, the result is the prefix that most names in the file share.

    Example:
        >>> copies_of(["net.a", "net.b", "c.b"], ["a", "b"]), copies_of(["x"], ["a"])
        (['net.'], [''])
    """
    wanted, counts = set(expected), Counter[str]()
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in wanted:
                counts["".join(f"{part}." for part in parts[:cut])] += 1
    if not counts:
        return [_common_wrapper(names)]
    most = max(counts.values())
    return [prefix for prefix, count in counts.items() if count > ENOUGH * most]


def rank(prefix: str) -> int:
    """Returns the rank of a copy: 0 averaged copies, 1 teachers, 2 other copies, 3 students.

    The copy with the lowest rank is chosen.
    """
    parts = prefix.split(".")
    if any(AVERAGED.fullmatch(part) for part in parts):
        return 0
    if "teacher" in parts:
        return 1
    return 3 if "student" in parts else 2


def without_wrapper(tensors: Mapping[str, Tensor]) -> Found:
    """Removes the prefix that most names share, for a file with other names than the model has."""
    prefix = _common_wrapper(tensors)
    own = {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}
    others = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(prefix) and not _is_training_state(name, tensor)
    }
    return Found(prefix=prefix, tensors=own, others=others)


def _common_wrapper(names: Collection[str]) -> str:
    """Returns the prefix that training scripts put before most names.

    Example:
        >>> _common_wrapper(["model.module.x", "model.module.y", "optimizer.z"])
        'model.module.'
    """
    prefix, left = "", list(names)
    while True:
        first = Counter(name.partition(".")[0] for name in left)
        best = next((word for word in WRAPPERS if first[word] * 2 > len(left)), None)
        if best is None:
            return prefix
        prefix += f"{best}."
        left = [name[len(best) + 1 :] for name in left if name.startswith(f"{best}.")]


def _root(other: str, chosen: str) -> str:
    """Returns the shortest prefix that distinguishes another copy from the chosen copy.

    Example:
        >>> _root("s.student.backbone.", "s.teacher.backbone."), _root("", "ema.")
        ('s.student.', '')
    """
    theirs, ours = other.split("."), chosen.split(".")
    common = 0
    while common < len(theirs) - 1 and theirs[common] == ours[common]:
        common += 1
    return "".join(f"{part}." for part in theirs[: common + 1] if part)


def _closer(name: str, chosen: str, root: str) -> bool:
    """Returns True if a tensor belongs to the chosen copy, not to the copy with prefix `root`."""
    return name.startswith(chosen) and len(chosen) > len(root)


def _is_training_state(name: str, tensor: Tensor) -> bool:
    """Returns True if a tensor is a counter or belongs to an optimiser, not to a model."""
    return bool(TRAINING_STATE.fullmatch(name.partition(".")[0])) or (
        tensor.ndim == 0 and not tensor.is_floating_point()
    )


def _same(tensors: Mapping[str, Tensor], one: str, other: str) -> bool:
    """Returns True if two copies of a model, named by prefix, have equal names and tensors."""
    names = [{n[len(p) :] for n in tensors if n.startswith(p)} for p in (one, other)]
    return names[0] == names[1] and all(
        torch.equal(tensors[one + name], tensors[other + name]) for name in names[0]
    )
