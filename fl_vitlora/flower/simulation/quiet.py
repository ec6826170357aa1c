"""Hides log messages of Flower, Ray and Hugging Face: this project reports errors itself."""

from __future__ import annotations

import logging
import os

import flwr.supercore.logger  # noqa: F401 - Flower sets its logger's level during this import

TALKATIVE = ("flwr", "ray", "huggingface_hub", "datasets", "timm")
LEVELS = ("HF_HUB_VERBOSITY", "DATASETS_VERBOSITY")  # Hugging Face reads them during its import


def silence() -> None:
    """Raises the levels of loggers whose messages would disturb the progress bar.

    The import of Ray resets the level of Ray's logger. Call this function again after the import of
    Ray.
    """
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.update(dict.fromkeys(LEVELS, "critical"))
