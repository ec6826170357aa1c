"""Hides log messages of Flower, Ray and Hugging Face: this project reports errors itself."""

from __future__ import annotations

import logging
import os

import flwr.supercore.logger  # noqa: F401 - Flower sets its logger's level during this import

TALKATIVE = ("flwr", "ray", "huggingface_hub", "datasets", "timm")
LEVELS = ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY")  # Hugging Face reads these at import


def silence() -> None:
    """Raises the levels of loggers whose messages would disturb the progress bar.

    Call this function again after the import of Ray, which resets the level of Ray's logger.
    """
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.update(dict.fromkeys(LEVELS, "critical"))
