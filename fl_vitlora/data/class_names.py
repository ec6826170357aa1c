"""Writes, reads and compares lists of class names, and converts labels between two lists.

A label is a position in a list of class names. Two lists may have the same names in a different
order. Therefore every shard, run and model stores its own list, and labels of two lists are
compared only by the names of their classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fl_vitlora.errors import UserError, shown

CLASS_NAMES = "class_names"  # the key of the list in the metadata of shards and models
MOST_NAMED = 3  # the largest number of names in a message


def write_names(names: Sequence[str]) -> str:
    """Writes the names of classes, in their order, as one JSON text.

    Args:
        names: The names of the classes, in the order of their labels.

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
        place: The origin of the text, for example "shard FILE", for error messages.

    Returns:
        The names of the classes, in the order of their labels.

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
            f'{place}: expected a list with the names of the classes, such as ["cat", "dog"], got '
            f"{shown(text)}"
        )
    _check_unique(found, place)
    return tuple(found)


def disagreement(own: Sequence[str], wanted: Sequence[str]) -> str:
    """Returns a text that says how two lists of classes differ, or "" for equal lists.

    Args:
        own: The class names of a shard or a client.
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
        own: The class names in the order of the given labels.
        wanted: The same class names in the order of the new labels.
        place: The origin of the labels, for error messages.

    Returns:
        The labels as positions in `wanted`, int64 (n,).

    Raises:
        UserError: When the two lists have different names, or when a label has no name.

    Example:
        >>> renumbered(torch.tensor([0, 0, 1]), ("dog", "cat"), ("cat", "dog"), "a shard")
        tensor([1, 1, 0])
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(own):
        raise UserError(
            f"{place} has labels from {int(labels.min())} to {int(labels.max())}, but its list of "
            f"class names covers only 0 to {len(own) - 1}"
        )
    if tuple(own) == tuple(wanted):
        return labels
    if set(own) != set(wanted):
        raise UserError(
            f"{place} has other classes than this run ({disagreement(own, wanted)}); write the "
            "shard again with the run's class names"
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
            raise UserError(f"{place}: the class name {shown(name)} occurs twice; expected it once")
        seen.add(name)


def _name_few(names: Iterable[str]) -> str:
    """Returns the first few names in quotes, and the number of the remaining names."""
    ordered = sorted(names)
    few, rest = ordered[:MOST_NAMED], ordered[MOST_NAMED:]
    more = f" and {len(rest)} more" if rest else ""
    return ", ".join(map(shown, few)) + more
