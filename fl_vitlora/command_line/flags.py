"""Two tables of flags: the flags that give a value to one setting, and all other flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


def place(text: str) -> Path:
    """Returns a path from the command line; its ``~`` is replaced by the home folder.

    A shell does not replace the ``~`` in ``--resume=~/run``.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111 - keeps ~ if no home is known


class SettingFlag(NamedTuple):
    """A flag that sets one setting.

    Attributes:
        path: The dotted path of the setting.
        value: The word that stands for the value in the help: the unit or the kind of the value.
            The word is empty if the flag is a switch, which sets its setting to true.
        explanation: What the flag does, with the default in brackets at the end.
    """

    path: str
    value: str
    explanation: str


class OtherFlag(NamedTuple):
    """A flag that does not give a value to one setting.

    Attributes:
        value: The word that stands for the value in the help; empty if the flag takes no value.
        explanation: What the flag does, in one line.
        options: The arguments of `ArgumentParser.add_argument` for this flag.
        more: Further sentences for `--help-all`.
    """

    value: str
    explanation: str
    options: Mapping[str, Any]
    more: str = ""


FLAGS = {
    "--clients": SettingFlag("clients", "N", "Number of clients; each holds its own images (20)"),
    "--rounds": SettingFlag("rounds", "N", "Number of rounds of federated training (20)"),
    "--fraction": SettingFlag(
        "fraction", "SHARE", "Share of the clients that train in a round (1.0)"
    ),
    "--min-clients": SettingFlag(
        "min_clients", "N", "Fewest usable updates that a round needs (1)"
    ),
    "--strategy": SettingFlag(
        "strategy.name",
        "NAME",
        "Aggregation strategy: a file in strategies/, or package.module:Class (fedavg)",
    ),
    "--method": SettingFlag(
        "finetuning.method",
        "NAME",
        "What is trained beside the head: parts joined by +, such as bias+norm or full "
        "(lora+patch_embed)",
    ),
    "--dataset": SettingFlag(
        "data.name", "NAME", "Images: digits, a Hugging Face data set, or a local path (digits)"
    ),
    "--model": SettingFlag(
        "model.name", "NAME", "Backbone: vit_letters_16 or any timm ViT (vit_letters_16)"
    ),
    "--partition": SettingFlag(
        "data.partition",
        "NAME",
        "How images are divided among the clients: dirichlet, iid, pathological, shard "
        "or natural (dirichlet)",
    ),
    "--budget": SettingFlag("budget", "BYTES", "Most bytes that the run may send: 50MB (no limit)"),
    "--target-accuracy": SettingFlag(
        "target_accuracy",
        "SHARE",
        "Report after how many bytes this test accuracy, such as 0.95, was reached (none)",
    ),
    "--seed": SettingFlag("seed", "N", "Seed of everything random except the owner's secret (0)"),
    "--checkpoint-every": SettingFlag(
        "checkpoint_every", "N", "Number of rounds between two checkpoints (1)"
    ),
    "--out": SettingFlag("out", "FOLDER", "Folder of the results (a new one under runs/)"),
    "--device": SettingFlag(
        "engine.device", "NAME", "Where clients compute: auto, cpu or cuda (auto)"
    ),
    "--cohort": SettingFlag(
        "engine.cohort", "N", "Number of clients that a worker trains in one batch (an eighth)"
    ),
    "--record-updates": SettingFlag(
        "record_updates",
        "",
        "Store what the server sees of each round under updates/, for research on attacks (False)",
    ),
    "--workers": SettingFlag(
        "engine.workers", "N", "Number of worker processes (one a core, up to four a GPU)"
    ),
    "--ray-address": SettingFlag(
        "engine.ray_address", "HOST:PORT", "Address of a running Ray cluster (start Ray here)"
    ),
}

TEXTS = {  # settings whose value is used exactly as the user typed it, and is not read as YAML
    "strategy.name",
    "data.name",
    "model.name",
    "out",
    "budget",
    "engine.ray_address",
}

OTHER_FLAGS = {
    "--set": OtherFlag(
        "PATH=VALUE",
        "Any setting: training.epochs=2; may be repeated",
        {"dest": "overrides", "action": "append", "default": []},
    ),
    "--config": OtherFlag("FILE", "Read settings from a YAML file; flags override the file", {}),
    "--compare": OtherFlag(
        "AXIS",
        "Compare methods, strategies or PATH=V1,V2,V3",
        {"nargs": "+"},
        "An axis is a list of values of one setting. Every combination of the axes is run.",
    ),
    "--seeds": OtherFlag(
        "SEED", "Run everything with each of these seeds, such as 0-2", {"nargs": "+"}
    ),
    "--resume": OtherFlag(
        "RUN",
        "Continue the run in this folder, to the same bits",
        {"type": place},
        "The run continues from its last checkpoint. Ctrl-C ends a run or a comparison after the "
        "current round; a second Ctrl-C ends it at once.",
    ),
    "--check-strategy": OtherFlag(
        "NAME",
        "Test your strategy against the rules of its contract",
        {},
        "The strategy is named as for --strategy. The command shows its parameters, too. It "
        "trains nothing.",
    ),
    "--check-method": OtherFlag(
        "NAME",
        "Test your fine-tuning method against the rules",
        {},
        "The method is named as for --method, or by a Python file. The command shows its parts, "
        "too. It runs no experiment.",
    ),
    "--check-predictor": OtherFlag(
        "NAME",
        "Test your predictor against the rules",
        {},
        "The predictor is named by a Python file or as package.module:Class. The command runs no "
        "experiment.",
    ),
    "--check-observer": OtherFlag(
        "NAME",
        "Test your observer against the rules",
        {},
        "The observer is named by a Python file or as package.module:Class. The command shows it "
        "made-up rounds and runs no experiment.",
    ),
    "--rotate-key": OtherFlag(
        "PLACE",
        "Draw a new secret and encrypt shards again under it",
        {"nargs": "+", "type": place},
        "A place is a shard or a folder of shards. Nothing is trained. encryption.key_file names "
        "the key ring, which keeps its old secrets.",
    ),
    "--storage-keys": OtherFlag(
        "PLACE",
        "Write the storage keys of shards to the folder --out",
        {"nargs": "+", "type": Path},
        "Every party that has shards at these places gets a file. The file holds the key that "
        "opens the party's shards on the disk, but not the key of the images in them. A deployed "
        "node is given its file.",
    ),
    "--trust-strategy": OtherFlag(
        "NAME",
        "Allow a configuration file to use this code, package.module:Class",
        {"nargs": "+"},
        "Their code is run. Strategies of this project and of Flower, and the one that --strategy "
        "names, need no permission.",
    ),
    "--verbose": OtherFlag("", "Show the messages of Flower and Ray", {"action": "store_true"}),
}

# The flags that --help shows, in this order. --help-all shows all flags.
COMMON = (
    "--clients",
    "--rounds",
    "--fraction",
    "--method",
    "--strategy",
    "--dataset",
    "--model",
    "--partition",
    "--budget",
    "--seed",
    "--device",
    "--out",
    "--set",
    "--config",
    "--compare",
    "--seeds",
    "--resume",
    "--check-strategy",
    "--check-method",
)
