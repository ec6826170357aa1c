"""Writes, reads and compares lists of class names, and converts labels between two lists.

A label is a position in a list of class names, and two lists may differ in their order. Every
shard, run and model therefore stores its own list, and the labels of two lists are compared only by
name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fl_vitlora.errors import UserError, shown

CLASS_NAMES = "class_names"  # the key of the list in the metadata of shards and models
MOST_NAMED = 3  # most names in a message


def write_names(names: Sequence[str]) -> str:
    """Writes the names of classes, in their order, as one JSON text.

    Args:
        names: The names of the classes.

    Raises:
        UserError: When a name occurs twice, because the name would belong to two labels.

    Example:
        >>> write_names(("cat", "dog"))
        '["cat", "dog"]'
    """
    _check_unique(names, "the classes")
    return json.dumps(list(names), ensure_ascii=False)


def read_names(text: str, place: str) -> tuple[str, ...]:
    """Reads the names of classes from the text that `write_names` wrote.

    Args:
        text: The list of names in JSON.
        place: The origin of the text, for messages.

    Returns:
        The names, in their order.

    Raises:
        UserError: When the text is not a list of names, or when a name occurs twice.

    Example:
        >>> read_names('["cat", "dog"]', "a shard")
        ('cat', 'dog')
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(n, str) for n in found):
        raise UserError(
            f'{place}: expected the names of the classes as a list, ["cat", "dog"], got '
            f"{shown(text)}"
        )
    _check_unique(found, place)
    return tuple(found)


def disagreement(own: Sequence[str], wanted: Sequence[str]) -> str:
    """Returns a text on how two lists of classes differ; the text is empty if they are equal.

    Args:
        own: The class names of one party.
        wanted: The class names of the run.

    Example:
        >>> disagreement(("cat", "dog"), ("cat", "dog"))
        ''
        >>> disagreement(("dog", "cat"), ("cat", "dog"))
        "class 0 is 'dog' there and 'cat' in this run"
        >>> disagreement(("cat", "cow"), ("cat", "dog", "hen"))
        "only there: 'cow'; only in this run: 'dog', 'hen'"
    """
    theirs, ours = set(own), set(wanted)
    if theirs != ours:
        sides = {"only there": theirs - ours, "only in this run": ours - theirs}
        return "; ".join(f"{side}: {_name_few(names)}" for side, names in sides.items() if names)
    for label, (there, here) in enumerate(zip(own, wanted, strict=True)):
        if there != here:
            return f"class {label} is {shown(there)} there and {shown(here)} in this run"
    return ""


def renumbered(labels: Tensor, own: Sequence[str], wanted: Sequence[str], place: str) -> Tensor:
    """Converts labels from one list of class names to another list of the same names.

    Args:
        labels: The labels as positions in `own`, int64 (n,).
        own: The class names in the order that the labels use.
        wanted: The same class names in the wanted order.
        place: The origin of the labels, for messages.

    Returns:
        The labels as positions in `wanted`.

    Raises:
        UserError: When the two lists hold different names, or when a label has no name.

    Example:
        >>> renumbered(torch.tensor([0, 0, 1]), ("dog", "cat"), ("cat", "dog"), "a shard")
        tensor([1, 1, 0])
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(own):
        raise UserError(
            f"{place} has labels from {int(labels.min())} to {int(labels.max())}, but class names "
            f"only for 0 to {len(own) - 1}"
        )
    if tuple(own) == tuple(wanted):
        return labels
    if set(own) != set(wanted):
        raise UserError(
            f"{place} has other classes than this run ({disagreement(own, wanted)}); write it "
            "again with the run's class names"
        )
    places = {name: number for number, name in enumerate(wanted)}
    return torch.tensor([places[name] for name in own], dtype=torch.int64)[labels]


def _check_unique(names: Sequence[str], place: str) -> None:
    """Checks that no name occurs twice.

    Raises:
        UserError: When a name occurs twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{place}: the class name {shown(name)} occurs twice")
        seen.add(name)


def _name_few(names: Iterable[str]) -> str:
    """Returns the first few names in quotes, and the number of the remaining names."""
    ordered = sorted(names)
    few, rest = ordered[:MOST_NAMED], ordered[MOST_NAMED:]
    more = f" and {len(rest)} more" if rest else ""
    return ", ".join(map(shown, few)) + more
