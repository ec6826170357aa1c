"""The forms in which a trained model is exported, and the images that a model may read.

This module has only the names, so that the command line can list them without importing PyTorch.
"""

from __future__ import annotations

from typing import Literal, get_args

Form = Literal["timm", "peft", "onnx"]
Reads = Literal["plain", "ciphertext"]

FORMS: tuple[Form, ...] = get_args(Form)
READS: tuple[Reads, ...] = get_args(Reads)
