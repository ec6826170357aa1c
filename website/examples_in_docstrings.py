"""An extension of griffe, which reads docstrings for mkdocstrings.

The docstrings of this project write ``Example:`` above code, as Google's style guide does. Griffe
knows the section ``Examples:`` and takes ``Example:`` for a box with text.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

HEADING = re.compile(r"^( *)Example:$", re.MULTILINE)


class ExamplesInDocstrings(griffe.Extension):
    """Renames the heading of examples in every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the docstring of a module, class, function or attribute in place."""
        if obj.docstring is not None:
            obj.docstring.value = HEADING.sub(r"\1Examples:", obj.docstring.value)
