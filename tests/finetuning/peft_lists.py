"""Which tuners of peft fit the bundled ViT, as docs/peft.md lists them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The tuners that fit, and the settings that they need.
WORKING: Mapping[str, Mapping[str, Any]] = {}
# The tuners that do not fit with their defaults, and a part of the reason.
REFUSED: Mapping[str, str] = {}
