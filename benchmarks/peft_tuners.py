"""All tuners of the installed peft: which fit the bundled ViT, and why others do not.

A tuner works if it keeps every rule of `--check-method`. The column "numbers trained" counts the
numbers that the method trains without the head, for vit_letters_16 and the layer `qkv` of every
block. The output is the table of docs/peft.md. The program takes some minutes.

    python benchmarks/peft_tuners.py
    python benchmarks/peft_tuners.py HRA OFT
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, peft_tuners, shelf
from fl_vitlora.finetuning.method import Method
from fl_vitlora.state import count
from fl_vitlora.testing.method import findings
from fl_vitlora.testing.method_subject import Subject

# Settings that a tuner needs on layers of 96 inputs and 288 outputs, in addition to its defaults.
NEEDED: Mapping[str, Mapping[str, Any]] = {
    "C3A": {"block_size": 96, "init_weights": True},
    "FOURIERFT": {"init_weights": True},
    "GLORA": {"config_D_E": "none"},
    "ROAD": {"group_size": 32},
    "VBLORA": {"vector_length": 96},
}


def main(tuners: list[str]) -> None:
    """Prints a table.

    Args:
        tuners: The names of the tuners; all if the list is empty.
    """
    print("| tuner | works | numbers trained | merges | settings, or the reason against it |")
    print("|---|---|--:|---|---|")
    for tuner in tuners or sorted(peft_tuners.tuners()):
        print(row(tuner), flush=True)


def row(tuner: str) -> str:
    """Returns the line of the table for a tuner."""
    needed = NEEDED.get(tuner, {})
    try:
        config = FineTuningConfig(method=f"peft:{tuner}", parameters=needed)
        method = shelf.method_of(config)
        numbers = f"{trained(method):,}"
    except UserError as error:
        return f"| `{tuner}` | no | | | {reason(str(error))} |"
    problems = [f"{found.rule}: {found.problem}" for found in findings(method) if found.problem]
    if problems:
        return f"| `{tuner}` | no | {numbers} | | {problems[0]} |"
    against = method.parts[0][1].cannot_merge
    told = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in needed.items())
    notes = "; ".join(note for note in (told, against) if note)
    return f"| `{tuner}` | yes | {numbers} | {'no' if against else 'yes'} | {notes} |"


def trained(method: Method) -> int:
    """Returns the count of numbers that a method trains, without those of the head."""
    names = methods.trainable(Subject(method=method).prepared().model)
    return count({name: p for name, p in names.items() if methods.group_of(name) != methods.HEAD})


def reason(message: str) -> str:
    """Returns the reason in the message of a refusal, without the name of the method."""
    for mark in ("does not fit a ViT: ", "peft refuses: "):
        message = message.partition(mark)[2] or message
    return message


if __name__ == "__main__":
    main(sys.argv[1:])
