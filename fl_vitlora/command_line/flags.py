"""Two tables of command-line flags: flags that set one setting, and all other flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fl_vitlora.config.attack_names import ON_REQUEST, USUAL


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
            A flag with an empty `value` is a switch, which sets its setting to true.
        explanation: One sentence that says what the flag does, with the default in brackets at the
            end.
    """

    path: str
    value: str
    explanation: str


class OtherFlag(NamedTuple):
    """A flag that does not set one setting, for example a flag that names a command.

    Attributes:
        value: The word that stands for the value in the help. A flag with an empty `value` takes no
            value.
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
        "What is trained in addition to the head: one part or a sum, such as full or bias+norm "
        "(lora+patch_embed)",
    ),
    "--dataset": SettingFlag(
        "data.name", "NAME", "Images: digits, a Hugging Face data set, or a local path (digits)"
    ),
    "--shards": SettingFlag(
        "data.shards",
        "FOLDER",
        "Train on encrypted shards that owners made elsewhere, without plain images (none)",
    ),
    "--model": SettingFlag(
        "model.name", "NAME", "Backbone: vit_letters_16 or any timm ViT (vit_letters_16)"
    ),
    "--init-from": SettingFlag(
        "model.init_from", "RUN", "Start with the trained model of this finished run (none)"
    ),
    "--partition": SettingFlag(
        "data.partition",
        "NAME",
        "How images are divided among the clients: dirichlet, iid, quantity, "
        "pathological, shard or natural (dirichlet)",
    ),
    "--budget": SettingFlag(
        "budget", "BYTES", "Most bytes that the run may send, such as 50MB (none)"
    ),
    "--target-accuracy": SettingFlag(
        "target_accuracy",
        "SHARE",
        "Report how many bytes were sent until this accuracy was reached, such as 0.95 (none)",
    ),
    "--seed": SettingFlag("seed", "N", "Seed of all random choices except the secret key (0)"),
    "--checkpoint-every": SettingFlag(
        "checkpoint_every", "N", "Number of rounds between two checkpoints (1)"
    ),
    "--out": SettingFlag("out", "FOLDER", "Folder for the results (a new folder in runs/)"),
    "--device": SettingFlag(
        "engine.device", "NAME", "Where clients compute: auto, cpu or cuda (auto)"
    ),
    "--cohort": SettingFlag(
        "engine.cohort",
        "N",
        "Number of clients that a worker trains in one batch (an eighth of a round's clients; a "
        "third of them with the methods head and losa)",
    ),
    "--record-updates": SettingFlag(
        "record_updates",
        "",
        "Store in updates/ what the server sees in each round, for research on attacks (False)",
    ),
    "--plain-examples": SettingFlag(
        "plain_examples",
        "N",
        "Draw N training images of a client, plain and encrypted, for the images' owner (0)",
    ),
    "--workers": SettingFlag(
        "engine.workers", "N", "Number of worker processes (one per core, or up to four per GPU)"
    ),
    "--ray-address": SettingFlag(
        "engine.ray_address",
        "HOST:PORT",
        "Network address of a running Ray cluster (start Ray on this machine)",
    ),
}

TEXTS = {  # settings whose value is used exactly as the user typed it, and is not read as YAML
    "strategy.name",
    "data.name",
    "data.shards",
    "model.name",
    "model.init_from",
    "out",
    "budget",
    "engine.ray_address",
}

OTHER_FLAGS = {
    "--set": OtherFlag(
        "PATH=VALUE",
        "Set any setting: training.epochs=2; may be repeated",
        {"dest": "overrides", "action": "append", "default": []},
    ),
    "--config": OtherFlag("FILE", "Read settings from a YAML file; flags override them", {}),
    "--compare": OtherFlag(
        "AXIS",
        "Compare methods, strategies, or values such as training.epochs=1,2",
        {"nargs": "+"},
        "An axis is several values of one setting: names of methods, names of strategies, or the "
        "path of any setting with its values. Every combination of the axes is run.",
    ),
    "--seeds": OtherFlag(
        "SEED", "Repeat each experiment with these seeds, such as 0-2", {"nargs": "+"}
    ),
    "--search": OtherFlag(
        "FILE",
        "Search for the best settings in the ranges that this YAML file describes",
        {},
        "The file has the settings of an experiment and the key search, which names the settings "
        "that vary, with their ranges. Optuna proposes the settings of each trial. Trials are "
        "compared on validation images only. The best settings are written to best.yaml, and all "
        "trials to trials.csv and trials.md. The same command with the same --out continues an "
        "interrupted search, and repeats trials that failed, for example because the disk was "
        "full. Trials whose settings are refused, or whose training diverges, are not repeated. "
        "After two failed trials in a row the search ends with exit code 1.",
    ),
    "--watch": OtherFlag(
        "",
        "Show a page that follows the run or the comparison in a browser on this machine",
        {"action": "store_true"},
        "The address of the page is printed at the start. The command fl-vitlora watch FOLDER "
        "shows the same page from another terminal, also after the run.",
    ),
    "--resume": OtherFlag(
        "RUN",
        "Continue the interrupted run in this folder",
        {"type": place},
        "The run continues from its last checkpoint. Its result has the same bits as that of a "
        "run without interruption. Ctrl-C ends a run or a comparison after the current round; a "
        "second Ctrl-C ends it at once.",
    ),
    "--attack": OtherFlag(
        "RUN",
        "Audit the finished run in this folder by attacks on what it sent",
        {"type": place},
        "The attacks use the recorded updates (--record-updates), the shards and the final model. "
        "Each attack is given only what its adversary has. The key ring is needed to compare the "
        "guesses with the truth. The outcomes are written to attacks.json in the run folder.",
    ),
    "--only": OtherFlag(
        "NAMES",
        "Attacks that --attack carries out, with commas between them",
        {},
        f"By default these attacks are carried out: {', '.join(USUAL)}. Other attacks take minutes "
        f"for each client, and must be named: {', '.join(ON_REQUEST)}. An attack of your own is "
        "named package.module:Class.",
    ),
    "--images": OtherFlag(
        "N",
        "Number of encrypted images that --attack gives to an attack on ciphertext",
        {},
        "For known_plaintext it is the number of pairs of an image and its ciphertext. "
        "gradient_matching and crafted_embedding reconstruct at most so many images. The default "
        "is 8.",
    ),
    "--attack-seconds": OtherFlag(
        "SECONDS",
        "Time budget of each attack of --attack",
        {},
        "The default is 120. The budget is for all adversaries of an attack together. An attack "
        "that does not end in time has no figures, and its outcome says so. A step of an attack "
        "that has begun is not interrupted.",
    ),
    "--attack-pictures": OtherFlag(
        "",
        "Draw the images that --attack recovers, beside the plain images",
        {"action": "store_const", "const": True},
        "The pictures are written to attack_pictures/ in the run folder, and a report shows them. "
        "They show plain images of the owners, so do not hand them on.",
    ),
    "--fail-if": OtherFlag(
        "BOUND",
        "End --attack with exit code 1 if BOUND is true for an outcome; may be repeated",
        {"action": "append"},
        "BOUND is 'ATTACK.FIGURE>NUMBER', 'ATTACK/ADVERSARY.FIGURE>NUMBER' or 'verdict>=partly'. "
        "FIGURE is the name of a figure as it is printed, or verdict. The comparison may also be "
        ">=, < or <=. Verdicts are, in this order, 'not applicable', not, partly and recovered. "
        "After attacks.json is written, one line is printed for each BOUND that is true.",
    ),
    "--check-strategy": OtherFlag(
        "NAME",
        "Test your strategy against the rules for strategies",
        {},
        "NAME is the name of a strategy, as for --strategy. The command also shows the parameters "
        "of the strategy. It trains nothing.",
    ),
    "--check-method": OtherFlag(
        "NAME",
        "Test your fine-tuning method against the rules for methods",
        {},
        "NAME is the name of a method, as for --method, or the path of a Python file. The command "
        "also shows the parts of the method. It runs no experiment.",
    ),
    "--check-predictor": OtherFlag(
        "NAME",
        "Test your predictor against the rules for predictors",
        {},
        "A predictor is code that computes the logits of test images with a model. NAME is the "
        "path of a Python file, or package.module:Class. The command runs no experiment.",
    ),
    "--check-observer": OtherFlag(
        "NAME",
        "Test your observer against the rules for observers",
        {},
        "An observer is code that gets what the server sees in each round. NAME is the path of a "
        "Python file, or package.module:Class. The command gives made-up rounds to the observer "
        "and runs no experiment.",
    ),
    "--check-attack": OtherFlag(
        "NAME",
        "Test your attack against the rules for attacks",
        {},
        "NAME is the path of a Python file, or package.module:Class. The command carries out the "
        "attack on small made-up runs, and runs no experiment.",
    ),
    "--rotate-key": OtherFlag(
        "PLACE",
        "Draw a new secret and encrypt shards again with this secret",
        {"nargs": "+", "type": place},
        "A shard is the file with the encrypted images of one client. PLACE is the path of a shard "
        "or of a folder of shards. Nothing is trained. The setting encryption.key_file names the "
        "key ring, a file of secrets. The key ring keeps its old secrets.",
    ),
    "--storage-keys": OtherFlag(
        "PLACE",
        "Write the storage keys of shards to the folder that --out names",
        {"nargs": "+", "type": Path},
        "PLACE is the path of a shard (a file with the encrypted images of one client) or of a "
        "folder of shards. The command writes one file for each party (a client, or the server) "
        "to which these shards belong. The file has the key that opens the party's shards on the "
        "disk. It does not have the key with which the images are encrypted. Give each deployed "
        "node its file.",
    ),
    "--new-identity": OtherFlag(
        "CLIENT",
        "Write a new identity key of this client to the file that --out names",
        {"type": int},
        "CLIENT is the number of the client. A deployed client signs with this key (see "
        "privacy.client_keys). Give the file to this client alone. The command prints the line "
        "with the public key, which the owner adds to the file that privacy.client_keys names.",
    ),
    "--trust-strategy": OtherFlag(
        "NAME",
        "Allow a configuration file to name this code, written as package.module:Class",
        {"nargs": "+"},
        "The program then runs the code. Strategies of this project, strategies of Flower and the "
        "strategy that --strategy names need no permission.",
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
