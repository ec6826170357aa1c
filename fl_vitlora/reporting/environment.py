"""Describes the machine and the installed versions with which a run is done."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("fl_vitlora", "flwr", "ray", "torch", "timm", "numpy", "flwr-datasets", "cryptography")


def environment() -> dict[str, Any]:
    """Returns a description of the machine and of the installed versions."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "directory": str(Path.cwd()),  # relative paths of the configuration start here
        "cpus": os.cpu_count(),
        "gpus": gpus if torch.cuda.is_available() else [],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
