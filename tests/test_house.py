"""The rules of the house that a reader cannot see at a glance: who imports what, and when."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_vitlora import config
from fl_vitlora.command_line.flags import FLAGS
from fl_vitlora.config import settings

ROOT = Path(__file__).parent.parent
PRODUCT = [
    path.relative_to(ROOT).as_posix()
    for folder in ("fl_vitlora", "strategies")
    for path in sorted((ROOT / folder).rglob("*.py"))
] + ["simulate.py"]

# Who may import a package at all; a path stands for a file, or for a folder and all in it.
ALLOWED = {
    "flwr": ["fl_vitlora/flower/", "fl_vitlora/experiment/deployment.py", "strategies/"],
    "ray": ["fl_vitlora/flower/"],
    "timm": ["fl_vitlora/models/"],
    "yaml": ["fl_vitlora/config/yaml_text.py"],
    "argparse": [
        "fl_vitlora/command_line/",
        "fl_vitlora/models/pretraining.py",
        "fl_vitlora/models/weight_file.py",  # training scripts store their options as a Namespace
    ],
    "matplotlib": ["fl_vitlora/reporting/", "fl_vitlora/models/glyphs.py"],
    "rich": ["fl_vitlora/reporting/"],
    "plotly": ["fl_vitlora/reporting/report/"],
    "jinja2": ["fl_vitlora/reporting/report/"],
    "markupsafe": ["fl_vitlora/reporting/report/"],
    "optuna": ["fl_vitlora/experiment/searching.py", "fl_vitlora/experiment/trial_run.py"],
    "sklearn": [
        "fl_vitlora/data/",
        "fl_vitlora/attacks/label_reading.py",
        "fl_vitlora/attacks/learned_images.py",
        "fl_vitlora/experiment/classification.py",  # figures of each class
    ],
    "datasets": ["fl_vitlora/data/"],
    "flwr_datasets": ["fl_vitlora/data/"],
    "pyarrow": ["fl_vitlora/data/"],
    "pydicom": ["fl_vitlora/data/"],
    "huggingface_hub": [
        "fl_vitlora/data/",
        "fl_vitlora/library/publishing.py",
        "fl_vitlora/models/hub_weights.py",
    ],
    "onnx": ["fl_vitlora/models/onnx_file.py"],
    "onnxruntime": ["fl_vitlora/models/onnx_file.py"],
    "peft": ["fl_vitlora/finetuning/peft_"],
    "PIL": ["fl_vitlora/data/", "fl_vitlora/models/"],
    "cryptography": ["fl_vitlora/encryption/", "fl_vitlora/privacy/secure_sum.py"],
    "constriction": ["fl_vitlora/communication/codecs/entropy.py"],
    "safetensors": [
        "fl_vitlora/storage/checksummed.py",
        "fl_vitlora/models/",
        "fl_vitlora/testing/",  # stores what a strategy remembers, as a checkpoint would
    ],
    "pickle": [
        "fl_vitlora/models/weight_file.py",  # for the name of its error
        "fl_vitlora/testing/",  # sends a strategy to a client, as Ray would
    ],
    "mlflow": ["fl_vitlora/library/trackers.py"],
    "wandb": ["fl_vitlora/library/trackers.py"],
    "torch.utils.tensorboard": ["fl_vitlora/library/trackers.py"],
    "msgpack": ["fl_vitlora/communication/parcel.py"],
    "strategies": ["fl_vitlora/command_line/", "fl_vitlora/library/", "strategies/"],
    "fl_vitlora.flower": [
        "fl_vitlora/flower/",
        "fl_vitlora/experiment/runner.py",
        "fl_vitlora/experiment/comparison.py",
        "fl_vitlora/experiment/deployment.py",
        "fl_vitlora/experiment/",
        "fl_vitlora/library/",  # the type of a strategy
        "strategies/",
    ],
    "fl_vitlora.experiment.runner": [
        "fl_vitlora/experiment/__init__.py",
        "fl_vitlora/command_line/",
        "fl_vitlora/experiment/comparison.py",
        "fl_vitlora/experiment/file_checks.py",
        "fl_vitlora/experiment/search_checks.py",
        "fl_vitlora/experiment/searching.py",
        "fl_vitlora/experiment/trial_run.py",
        "fl_vitlora/library/running.py",
    ],
    "fl_vitlora.experiment.comparison": [
        "fl_vitlora/command_line/comparing.py",
        "fl_vitlora/library/comparing.py",
    ],
    "fl_vitlora.command_line": ["simulate.py", "fl_vitlora/command_line/"],
    "fl_vitlora.adaptation.coordinates": [
        "fl_vitlora/federation/evaluation.py",
        "fl_vitlora/experiment/",
        "fl_vitlora/experiment/runner.py",
        "fl_vitlora/flower/client/app.py",
        "fl_vitlora/flower/client/workspace.py",
    ],
    "fl_vitlora.adaptation.policies": [
        "fl_vitlora/adaptation/coordinates.py",
        "fl_vitlora/experiment/",
        "fl_vitlora/experiment/preparation.py",
        "fl_vitlora/experiment/runner.py",
        "fl_vitlora/experiment/deployment.py",
        "fl_vitlora/flower/strategies/aggregators.py",  # asks who evaluates
        "fl_vitlora/flower/client/workspace.py",
    ],
    "fl_vitlora.population.byzantine": [
        "fl_vitlora/adaptation/policies.py",
        "fl_vitlora/experiment/",
        "fl_vitlora/flower/client/app.py",
    ],
    "fl_vitlora.population.faults": [
        "fl_vitlora/adaptation/policies.py",
        "fl_vitlora/experiment/",
        "fl_vitlora/flower/client/app.py",
    ],
    "fl_vitlora.federation.evaluation": [
        "fl_vitlora/experiment/",
        "fl_vitlora/federation/aggregator.py",  # strategies see measurements
        "fl_vitlora/flower/strategies/checking.py",
        "fl_vitlora/flower/strategies/flower_aggregator.py",
        "fl_vitlora/flower/server/client_evaluations.py",
        "fl_vitlora/flower/server/transport.py",
        "fl_vitlora/flower/wire/reported_counts.py",
    ],
    "fl_vitlora.encryption.steps": ["fl_vitlora/encryption/"],
}

# What a room may import of the package itself, beside its own files.
ROOMS = {
    "command_line/": [
        "__version__",
        "attacks",  # whether the outcome of an audit breaks a user's bound
        "checkpoints",
        "config",
        "errors",
        "experiment",
        "library",
        "reporting",
        "strategy",
        "testing",
    ],
    "library/": [
        "checkpoints",
        "config",
        "data",
        "errors",
        "experiment",
        "finetuning",
        "flower",  # the type of a strategy
        "models",
        "reporting",
        "storage",
        "training",
    ],
    "errors/": [],
    "rng.py": [],
    "state.py": [],
    "config/": ["errors"],
    "storage/": ["errors", "state"],
    "strategy/": ["config", "state"],
    "lowrank.py": ["state", "strategy"],
    "robust.py": ["lowrank", "state", "strategy"],
    "encryption/": ["errors", "storage"],
    "data/": ["config", "encryption", "errors", "rng", "storage"],
    "finetuning/": ["config", "errors", "rng", "state"],
    "communication/": ["errors", "finetuning", "state", "storage"],
    "checkpoints/": ["communication", "state", "storage"],
    "models/": ["config", "encryption", "errors", "finetuning", "rng", "state", "storage"],
    "privacy/": ["encryption", "rng", "state", "strategy"],
    "attacks/": [
        "communication",  # the words of a secure sum
        "config",
        "encryption",
        "errors",
        "federation",  # the type of what the server sees
        "finetuning",  # names of tensors
        "models",  # names of tensors, and how the model reads pixels
        "privacy",  # the masks and signatures of secure sums
        "state",
        "strategy",
    ],
    "population/": ["config", "errors", "finetuning", "rng", "state", "training"],
    "training/": [
        "config",
        "data",
        "encryption",
        "errors",
        "finetuning",
        "models",
        "state",
        "storage",
        "strategy",
    ],
    "adaptation/": [
        "config",
        "encryption",
        "errors",
        "finetuning",
        "models",
        "population",
        "state",
        "strategy",
    ],
    "federation/": [
        "adaptation",
        "config",
        "data",
        "encryption",
        "errors",
        "finetuning",
        "lowrank",
        "models",
        "population",
        "state",
        "storage",
        "strategy",
        "training",
    ],
    "testing/": [
        "attacks",
        "communication",
        "config",
        "data",  # the type of a shard
        "encryption",  # the key of a made-up run that is attacked
        "errors",
        "federation",
        "finetuning",
        "lowrank",
        "models",
        "privacy",
        "rng",
        "state",
        "strategy",
        "training",
    ],
}

# How many lines, with docstrings, a file, a class and a function have at most.
MOST_LINES = {"file": 350, "class": 200, "function": 50}
FLAT = ["fl_vitlora/config/schema.py"]  # a long list of settings, one below the other


@functools.cache
def imports(path: str) -> set[str]:
    """Finds all modules that a file imports, at its top, in functions or for types only."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            assert node.module is not None
            if node.module != "fl_vitlora":  # its members are rooms, and named below
                found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def python(code: str, **environment: str) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


def test_the_files_are_found():
    assert len(PRODUCT) > 40
    assert "fl_vitlora/flower/client/app.py" in PRODUCT
    assert "torch.nn.functional" in imports("fl_vitlora/training/local.py")


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_is_imported_in_its_rooms_alone(package: str):
    importers = {path for path in PRODUCT if any(within(name, package) for name in imports(path))}
    strangers = {path for path in importers if not path.startswith(tuple(ALLOWED[package]))}
    assert importers, f"nobody imports {package}; take it off the list"
    assert not strangers


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_below_it(room: str):
    own = room.removesuffix("/").removesuffix(".py")
    allowed = [f"fl_vitlora.{name}" for name in (own, *ROOMS[room])]
    files = [path for path in PRODUCT if path.startswith(f"fl_vitlora/{room}")]
    assert files
    for path in files:
        for name in imports(path):
            if within(name, "fl_vitlora"):
                assert any(within(name, package) for package in allowed), f"{path} sees {name}"


@pytest.mark.parametrize("path", PRODUCT)
def test_files_classes_and_functions_are_short(path: str):
    text = (ROOT / path).read_text(encoding="utf-8")
    lengths = {} if path in FLAT else {("file", path): len(text.splitlines())}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            assert node.end_lineno is not None
            lengths[kind, f"{node.name}, line {node.lineno}"] = node.end_lineno - node.lineno + 1
    too_long = {part: n for part, n in lengths.items() if n > MOST_LINES[part[0]]}
    assert too_long == {}


def test_code_that_a_user_names_is_imported_at_one_place():
    """So that what is refused, and how, is the same for methods, attacks, predictors and more."""
    found = [path for path in PRODUCT if "import_module(" in (ROOT / path).read_text("utf-8")]
    assert found == [
        "fl_vitlora/__init__.py",  # the names there are the project's own
        "fl_vitlora/config/named_code.py",
        "fl_vitlora/flower/simulation/warm_up.py",  # the names there are the project's own
    ]


def test_no_room_is_called_by_a_name_that_means_nothing():
    names = {part.removesuffix(".py") for path in PRODUCT for part in path.split("/")}
    assert not names & {"utils", "util", "helpers", "common", "base", "core", "misc"}


def test_what_is_secret_is_not_shown_with_what_holds_it():
    """A field called so stays out of `repr`, and with it out of logs, errors and tracebacks."""
    hidden = {}
    for path in PRODUCT:
        nodes = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        for kind in (node for node in nodes if isinstance(node, ast.ClassDef)):
            for line in (line for line in kind.body if isinstance(line, ast.AnnAssign)):
                name = ast.unparse(line.target)
                is_path = ast.unparse(line.annotation) in ("Path", "Path | None")  # of a file
                is_path |= f"data.{name}" in config.PATHS
                if name.startswith(("secret", "private", "root", "storage")) and not is_path:
                    hidden[kind.name, name] = "repr=False" in ast.unparse(line)
    assert {("KeyHolder", "secret"), ("KeyRing", "secrets"), ("Secret", "private")} <= set(hidden)
    assert {("StorageKey", "root"), ("StorageKeys", "roots")} <= set(hidden)
    assert [field for field, kept in hidden.items() if not kept] == []


@pytest.mark.parametrize(
    "code",
    [
        "import fl_vitlora.config",
        "import fl_vitlora.flower",
        "from fl_vitlora.command_line.parser import make_parser; make_parser().format_help()",
        "import strategies; strategies.available()",
        "import simulate\ntry: simulate.main(['--help'])\nexcept SystemExit: print(end='')",
        "import simulate\ntry: simulate.main(['--help-all'])\nexcept SystemExit: print(end='')",
        "import simulate\ntry: simulate.main(['--client', '3'])\nexcept SystemExit: print(end='')",
        "import simulate\ntry: simulate.main(['--clients', 'x'])\nexcept SystemExit: print(end='')",
    ],
)
def test_help_and_mistakes_do_not_wait_for_heavy_imports(code: str):
    heavy = ["torch", "timm", "flwr", "ray", "datasets", "sklearn", "matplotlib", "numpy"]
    told = python(f"{code}\nimport sys; print(); print([m for m in {heavy} if m in sys.modules])")
    assert told.splitlines()[-1] == "[]"


def test_help_names_every_setting():
    told = python("import simulate\nsimulate.main(['--help-all'])")
    for path in ("--clients", "training.learning_rate", "encryption.steps", "strategy.NAME"):
        assert path in told


def test_flags_tell_the_defaults_that_they_have():
    """An explanation ends with its default in brackets, or with words for one that is no value."""
    defaults = {path: default for path, default, _ in settings.explanations(config.Config)}
    for flag, entry in FLAGS.items():
        told = entry.explanation.rpartition("(")[2].removesuffix(")")
        assert told == str(defaults[entry.path]) or defaults[entry.path] is None, flag


@pytest.mark.parametrize("before", ["1", "0", ""])
def test_nobody_is_phoned_whatever_was_set_before(before: str):
    names = ["FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"]
    code = f"import os, fl_vitlora.flower; print([os.environ[n] for n in {names}])"
    assert python(code, **dict.fromkeys(names, before)).strip() == "['0', '0']"


def test_telemetry_is_off_before_flower_is_imported():
    """Flower reads the variable once, at its import."""
    code = (
        "import strategies; strategies.load('flwr.serverapp.strategy:FedAvg', {})\n"
        "import flwr.supercore.telemetry as t; print(t.FLWR_TELEMETRY_ENABLED)"
    )
    assert python(code, FLWR_TELEMETRY_ENABLED="1").strip() == "0"


def test_the_hub_is_silent_though_it_is_imported_later():
    """Its loggers take their level at their import."""
    told = python(
        "from fl_vitlora.flower.simulation.quiet import silence; silence()\n"
        "import logging, datasets, huggingface_hub\n"
        "names = ['datasets', 'huggingface_hub']\n"
        "print([logging.getLogger(name).level for name in names])"
    )
    assert told.strip() == "[50, 50]"
