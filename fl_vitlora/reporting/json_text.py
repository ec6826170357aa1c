"""JSON files for people: each value has its own line, but a list of numbers is on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# The pattern needs a line break after the bracket. A string of JSON has no line break, so texts are
# never changed.
NUMBERS = re.compile(r"\[\n\s*((?:(?:-?\d[\d.eE+-]*|null),?\s+)+)\]")


def to_json(content: Mapping[str, Any]) -> str:
    r"""Returns a JSON text with line breaks, in which a list of numbers takes one line.

    Example:
        >>> print(to_json({"matrix": [[1, 2], [0.5, None]], "name": "[\n 1]"}), end="")
        {
          "matrix": [
            [1, 2],
            [0.5, null]
          ],
          "name": "[\n 1]"
        }
    """
    return NUMBERS.sub(_on_one_line, json.dumps(content, indent=2)) + "\n"


def _on_one_line(found: re.Match[str]) -> str:
    return f"[{' '.join(found[1].split())}]"
