"""Specifications of codecs: steps joined by "+", transforms first, one quantiser last.

Examples: `int4`, `int4(128)`, `int8(block=64,rounding=nearest)`, `topk(0.05)+int4`,
`lowrank(4)+int8`. The arguments of a step are given in their order or by name; an argument with a
default may be omitted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fl_vitlora.communication.codecs.arguments import Argument
from fl_vitlora.communication.codecs.codec import Codec
from fl_vitlora.communication.codecs.transform import Transform
from fl_vitlora.errors import UserError, unknown

LONGEST = 200  # most characters of a specification
MOST_STEPS = 4
STEP = re.compile(r"\s*(?P<name>[^()]*?)\s*(\((?P<arguments>[^()]*)\)\s*)?")


def build(spec: str, kinds: Mapping[str, type[Codec]]) -> Codec:
    """Builds the codec of a specification.

    Args:
        spec: A specification from the user or from a message.
        kinds: A dictionary: for each name of a codec, its class.

    Returns:
        The codec; `build(str(codec), kinds)` gives the same codec.

    Raises:
        UserError: If the text is not a valid specification.
    """
    steps = spec.split("+")
    if len(spec) > LONGEST or len(steps) > MOST_STEPS:
        raise UserError(
            f"codec {spec[:40]!r}: expected at most {MOST_STEPS} steps and {LONGEST} characters"
        )
    kind, arguments = _step(steps[-1], kinds)
    codec = kind(**arguments)
    for step in reversed(steps[:-1]):
        kind, arguments = _step(step, kinds)
        if not issubclass(kind, Transform):
            raise kind.mistake(f"this codec must be the last step, but {str(codec)!r} follows it")
        codec = kind(**arguments, inner=codec)
    return codec


def _step(text: str, kinds: Mapping[str, type[Codec]]) -> tuple[type[Codec], dict[str, Any]]:
    """Reads the name and the arguments of one step."""
    match = STEP.fullmatch(text)
    if match is None or match["name"] not in kinds:
        raise unknown("codec", match["name"] if match else text.strip(), kinds)
    kind = kinds[match["name"]]
    given = [part.strip() for part in (match["arguments"] or "").split(",")]
    return kind, _arguments(kind, [] if given == [""] else given)


def _arguments(kind: type[Codec], given: list[str]) -> dict[str, Any]:
    """Matches each given argument to its name and reads its value."""
    expected = kind.arguments()
    if len(given) > len(expected):
        raise kind.mistake(f"this codec takes {_listed(expected)}, got {len(given)} arguments")
    found: dict[str, Any] = {}
    for place, text in enumerate(given):
        key, named, value = text.partition("=")
        name, value = (key.strip(), value.strip()) if named else (list(expected)[place], text)
        if name not in expected or name in found:
            raise kind.mistake(
                f"this codec takes {_listed(expected)}, each at most once, got {text!r}"
            )
        found[name] = _value(kind, name, expected[name], value)
    if missing := [name for name in kind.required() if name not in found]:
        raise kind.mistake(f"the argument {missing[0]} is needed: {expected[missing[0]]}")
    return found


def _value(kind: type[Codec], name: str, argument: Argument, text: str) -> object:
    """Reads the value of one argument; the codec checks the bounds of the value."""
    try:
        return argument.read(text)
    except ValueError:
        raise kind.mistake(f"{name} must be {argument}, got {text!r}") from None


def _listed(expected: Mapping[str, Argument]) -> str:
    """Returns the names of all arguments as text."""
    return " and ".join(expected) or "no arguments"
