"""Reads the axes and the seeds of a comparison from the command line.

An axis is a setting that the comparison varies, for example ``training.epochs=1,2``.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from fl_vitlora.config import SCHEMES, Config, paths
from fl_vitlora.config.method_names import PARTS, USUAL, is_peft, is_sum
from fl_vitlora.config.optimizer_names import OPTIMIZERS
from fl_vitlora.config.yaml_text import parse_value
from fl_vitlora.errors import UserError, shown, unknown

METHOD, OPTIMIZER = "finetuning.method", "training.optimizer"
MOST_RUNS = 10_000  # largest number of runs in a comparison, and of seeds in a range
SEED_RANGE = re.compile(r"(\d{1,18})\s*(?:-|\.\.+|–|:)\s*(\d{1,18})", re.ASCII)
CALL = re.compile(r"[^,\[\]{}'\"]*\([^()'\"]*,[^()'\"]*\)[^,\[\]{}'\"]*")


def read_words(
    words: Iterable[str], strategies: Sequence[str] | None = None
) -> dict[str, list[Any]]:
    """Reads axes from the command line, and returns them in the form that a YAML file has.

    A word without "=" is the name of a fine-tuning method, a strategy, or an encryption scheme.

    Args:
        words: The words that follow ``--compare``.
        strategies: The names of the known strategies, or None if they are not known. If the names
            are not known, every unknown word counts as a method. A name ``package.module:Class``
            always counts as a strategy.

    Example:
        >>> read_words(["head", "lora", "encryption.steps=[],EtC"])
        {'finetuning.method': ['head', 'lora'], 'encryption.steps': [[], 'EtC']}
        >>> read_words(["fedavg", "fedprox"], ["fedavg", "fedprox"])
        {'strategy': ['fedavg', 'fedprox']}
    """
    axes: dict[str, list[Any]] = {}
    for word in words:
        path, equals, values = word.partition("=")
        where = f"--compare {shown(word)}"
        read = parse_value(f"[{_protect_commas(values if equals else word)}]", where)
        for value in read:
            name = path if equals else _axis_of_word(value, strategies)
            axes.setdefault(name, []).append(value)
        if not read:
            axes.setdefault(path if equals else METHOD, [])
    return axes


def _protect_commas(values: str) -> str:
    """Quotes values such as ``int4(128,nearest)``, whose commas do not separate list items."""
    return CALL.sub(lambda call: json.dumps(call[0]), values)


def _axis_of_word(value: Any, strategies: Sequence[str] | None) -> str:
    """Returns the name of the axis to which a word without "=" belongs.

    Raises:
        UserError: If the word is a value of a setting that needs "=", or if the word is unknown.
    """
    methods, schemes = _choices_of(METHOD), list(SCHEMES)
    if value in methods or not isinstance(value, str) or is_sum(value) or is_peft(value):
        return METHOD
    if value in (strategies or ()) or ":" in value:
        return "strategy"
    if value in schemes:
        return "encryption.steps"
    for path in paths():
        if path != METHOD and value in _choices_of(path):
            raise UserError(
                f"--compare {value}: expected a value of {METHOD}, a strategy, or SETTING=VALUES; "
                f"{value} is a value of {path}, so write --compare {path}={value},..."
            )
    if strategies is None:
        return METHOD
    raise unknown(f"{METHOD} or strategy", value, [*methods, *schemes, *strategies])


def _choices_of(path: str) -> tuple[Any, ...]:
    """Returns the allowed values of a setting, or () if the setting has no fixed choices."""
    if path == METHOD:
        return tuple(dict.fromkeys([*USUAL, *PARTS]))
    if path == OPTIMIZER:
        return tuple(OPTIMIZERS)
    kind: Any = Config
    for name in path.split("."):
        kind = typing.get_type_hints(kind).get(name)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def read_seeds(words: Iterable[str]) -> list[Any]:
    """Reads seeds that the command line gives as numbers (7), lists (3,4) or ranges (0-2).

    Raises:
        UserError: If the last number of a range is smaller than the first, or if a range has more
            than `MOST_RUNS` seeds.

    Example:
        >>> read_seeds(["0-2", "7"]), read_seeds(["0..1"]), read_seeds(["3,4"])
        ([0, 1, 2, 7], [0, 1], [3, 4])
    """
    parts = [part for word in words for part in word.split(",")]
    return [seed for part in parts for seed in _seeds_of(part.strip())]


def is_several(seed: str) -> bool:
    """Returns True if the text is a range or a list of seeds, and False for one seed.

    Example:
        >>> is_several("0-4"), is_several("0,1"), is_several("7")
        (True, True, False)
    """
    return SEED_RANGE.fullmatch(seed) is not None or "," in seed


def _seeds_of(text: str) -> list[Any]:
    match = SEED_RANGE.fullmatch(text)
    if match is None:
        return [parse_value(text, "--seeds")]
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MOST_RUNS:
        raise UserError(
            f"seeds: {text} is not a rising range of at most {MOST_RUNS} seeds; expected numbers "
            "such as 0 1 2, or a range such as 0-4"
        )
    return list(range(first, last + 1))
