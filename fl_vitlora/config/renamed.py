"""Older names of settings, and settings that older versions did not have.

With these two tables, experiments of older versions can still be read and resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The group and the old name of a setting, its present name, and the present value of each old
# value.
RENAMED: Mapping[tuple[str, str], tuple[str, Mapping[Any, Any]]] = {
    ("engine", "mixed_precision"): ("precision", {True: "auto", False: "float32"}),
}

# Settings that older versions did not have, and the value with which a run behaves as in those
# versions. A run folder lists all settings of its version, so an older run lacks these settings.
ADDED: Mapping[str, Any] = {"finetuning.head_start": "zero"}


def missing_in(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a run of an older version did not have, with their values.

    Args:
        run: Nested plain values: the configuration in a run folder.

    Example:
        >>> missing_in({"finetuning": {"method": "lora"}})
        {'finetuning.head_start': 'zero'}
        >>> missing_in({"finetuning": {"method": "lora", "head_start": "lda"}})
        {}
    """
    found = {}
    for path, value in ADDED.items():
        group, _, name = path.rpartition(".")
        settings = run.get(group)
        if not isinstance(settings, Mapping) or name not in settings:
            found[path] = value
    return found


def with_present_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces older names of settings by present names.

    An older name is not replaced if its value was never allowed, or if the present name is given as
    well. The error about an unknown setting then names the older setting.

    Args:
        tree: Nested plain values of an experiment, as in its file.

    Example:
        >>> with_present_names({"clients": 3, "engine": {"mixed_precision": False}})
        {'clients': 3, 'engine': {'precision': 'float32'}}
    """
    whole = dict(tree)
    for (group, old), (new, values) in RENAMED.items():
        settings = whole.get(group)
        if not isinstance(settings, Mapping) or old not in settings or new in settings:
            continue
        value = settings[old]
        if isinstance(value, bool) and value in values:
            kept = {name: own for name, own in settings.items() if name != old}
            whole[group] = {**kept, new: values[value]}
    return whole
