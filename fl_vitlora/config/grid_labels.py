"""Makes the labels of a comparison's cells (experiments), and the names of run folders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Labels = Mapping[str, str]  # the label of a cell on each axis

LONGEST_NAME = 100  # characters of a run folder's name before the seed


def axes_of(cells: Iterable[Labels]) -> dict[str, list[str]]:
    """Returns a dictionary: the labels of each axis, in the order of their first use in a cell.

    Example:
        >>> axes_of([{"method": "head", "images": "plain"}, {"method": "lora"}])
        {'method': ['head', 'lora'], 'images': ['plain']}
    """
    axes: dict[str, list[str]] = {}
    for labels in cells:
        for axis, label in labels.items():
            names = axes.setdefault(axis, [])
            names.extend([label] if label not in names else [])
    return axes


def name_of(labels: Labels) -> str:
    """Returns the name of a cell: its labels joined by commas, or "experiment" without labels.

    Example:
        >>> name_of({"finetuning.method": "lora", "encryption.steps": "plain"})
        'lora, plain'
    """
    return ", ".join(labels.values()) or "experiment"


def folder_name(labels: Labels, seed: int) -> str:
    """Returns the name of a run's folder, in characters that every file system accepts.

    Example:
        >>> folder_name({"finetuning.method": "lora+patch_embed", "data": "a/b c"}, 3)
        'lora+patch_embed-a-b-c-seed3'
    """
    safe = re.sub(r"[^A-Za-z0-9_+.]+", "-", name_of(labels)).strip("-.")[:LONGEST_NAME]
    return f"{safe or 'cell'}-seed{seed}"


def label_of(value: Any) -> str:
    """Returns the label of a value: the value as text, and "none" for None and the empty list.

    Example:
        >>> [label_of(value) for value in (0.5, True, None, [], ["q", "v"])]
        ['0.5', 'true', 'none', 'none', 'q,v']
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == []:
        return "none"
    return ",".join(map(label_of, value)) if isinstance(value, list) else str(value)
