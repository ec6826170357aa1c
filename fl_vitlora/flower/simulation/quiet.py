"""Keeps the logs of Flower, Ray and the hub off the screen; failures are reported by ourselves."""

from __future__ import annotations

import logging
import os

import flwr.supercore.logger  # noqa: F401 - it sets the level of its logger when imported

TALKATIVE = ("flwr", "ray", "huggingface_hub", "datasets", "timm")
LEVELS = ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY")  # are read by those at their import


def silence() -> None:
    """Raises the level of the loggers that would speak between the lines of the progress bar.

    Ray sets the level of its logger when it is imported; call this again after that.
    """
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.update(dict.fromkeys(LEVELS, "critical"))
