"""Classes are known by their names; a label is a place in a list of names, and lists differ.

The names travel with every shard, run and model, so that numbers of two lists are never compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fl_vitlora.errors import UserError, shown

CLASS_NAMES = "class_names"  # in the metadata of shards and models
MOST_TOLD = 3  # names in a message


def write_names(names: Sequence[str]) -> str:
    """Writes the names of classes, in their order, as one text.

    Raises:
        UserError: When a name stands twice, so that labels could not be told apart by it.

    Example:
        >>> write_names(("cat", "dog"))
        '["cat", "dog"]'
    """
    _check_unique(names, "the classes")
    return json.dumps(list(names), ensure_ascii=False)


def read_names(text: str, place: str) -> tuple[str, ...]:
    """Reads what `write_names` wrote.

    Args:
        text: A list of names in JSON.
        place: Where it stands, for messages.

    Raises:
        UserError: When it is something else, or a name stands twice.

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
    """Says in what two lists of classes differ; empty where they are equal.

    Args:
        own: The classes of one party.
        wanted: Those of the run.

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
        return "; ".join(f"{side}: {_told(names)}" for side, names in sides.items() if names)
    for place, (one, other) in enumerate(zip(own, wanted, strict=True)):
        if one != other:
            return f"class {place} is {shown(one)} there and {shown(other)} in this run"
    return ""


def renumbered(labels: Tensor, own: Sequence[str], wanted: Sequence[str], place: str) -> Tensor:
    """Numbers labels as another list of the same names does.

    Args:
        labels: int64 (n,), places in `own`.
        own: Names of the classes as the labels number them.
        wanted: The same names in the order that is wanted.
        place: Whose labels they are, for messages.

    Returns:
        The labels as places in `wanted`.

    Raises:
        UserError: When the names are others, or a label has none.

    Example:
        >>> renumbered(torch.tensor([0, 0, 1]), ("dog", "cat"), ("cat", "dog"), "a shard")
        tensor([1, 1, 0])
    """
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(own):
        raise UserError(
            f"{place} has label {int(labels.min())} to {int(labels.max())}, and names for 0 to "
            f"{len(own) - 1}"
        )
    if tuple(own) == tuple(wanted):
        return labels
    if set(own) != set(wanted):
        raise UserError(
            f"{place} has other classes than this run ({disagreement(own, wanted)}); write it anew "
            "with the run's class names"
        )
    places = {name: number for number, name in enumerate(wanted)}
    return torch.tensor([places[name] for name in own], dtype=torch.int64)[labels]


def _check_unique(names: Sequence[str], place: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{place}: the class name {shown(name)} stands twice")
        seen.add(name)


def _told(names: Iterable[str]) -> str:
    few, *rest = sorted(names)[:MOST_TOLD], sorted(names)[MOST_TOLD:]
    more = f" and {len(rest[0])} more" if rest[0] else ""
    return ", ".join(map(shown, few)) + more
