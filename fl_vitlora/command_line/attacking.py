"""The command `--attack`: audits a finished run by attacks on what it sent and stored."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from fl_vitlora import config
from fl_vitlora.command_line.arguments import confirmed_by, read_overrides
from fl_vitlora.command_line.exits import BOUND_BROKEN, tell
from fl_vitlora.config.attack_bounds import read_bounds
from fl_vitlora.config.attack_names import read_attacks
from fl_vitlora.errors import UserError

IMAGES = 8  # default number of encrypted images that an attack on ciphertext uses
SECONDS = 120.0  # default time budget of an attack
MAY_NAME = (  # these files may have moved
    "encryption.key_file",
    "model.weights",
    "data.name",
    "privacy.client_keys",
)


def attack(arguments: argparse.Namespace) -> None:
    """Carries out attacks on the run that `--attack` names, and prints their outcomes.

    Args:
        arguments: The parsed command line.

    Raises:
        UserError: If the run cannot be audited, an attack or a figure is unknown, or a setting is
            given that does not name a file.
        SystemExit: If an outcome breaks a bound of `--fail-if`; the exit code is 1.
    """
    names, images = read_attacks(arguments.only), read_images(arguments.images)
    bounds, seconds = read_bounds(arguments.fail_if, names), read_seconds(arguments.attack_seconds)
    folder: Path = arguments.attack
    overrides = read_overrides(arguments)
    for path in overrides.keys() - set(MAY_NAME):
        raise UserError(
            f"--attack {folder}: the run has its own settings; remove {path}={overrides[path]} "
            f"(you may set: {', '.join(MAY_NAME)})"
        )
    import strategies
    from fl_vitlora.attacks.bounds import broken
    from fl_vitlora.experiment.attacked_run import settings_of
    from fl_vitlora.experiment.attacking import attack_run
    from fl_vitlora.reporting.attack_progress import AttackProgress
    from fl_vitlora.reporting.attack_table import print_attacks

    settings = config.resolve(config.to_mapping(settings_of(folder)), overrides)
    strategy = strategies.load_for(settings, confirmed_by(arguments))
    with AttackProgress(len(names)) as progress:
        found = attack_run(
            folder,
            settings,
            strategy,
            names,
            images,
            bounds=bounds,
            seconds=seconds,
            began=progress.began,
            pictures=arguments.attack_pictures is not None,
        )
        outcomes = list(found)
    print_attacks(outcomes, str(folder))
    if lines := broken(bounds, outcomes):
        for line in lines:
            tell(line)
        raise SystemExit(BOUND_BROKEN)


def read_images(text: str | None) -> int:
    """Reads the number of images that ``--images`` gives.

    Raises:
        UserError: If the text is not a whole number of at least 1.

    Example:
        >>> read_images(None), read_images("20")
        (8, 20)
    """
    if text is None:
        return IMAGES
    if not text.isdecimal() or not int(text):
        raise UserError(f"--images {text}: expected a whole number of at least 1")
    return int(text)


def read_seconds(text: str | None) -> float:
    """Reads the time budget that ``--attack-seconds`` gives.

    Raises:
        UserError: If the text is not a positive number.

    Example:
        >>> read_seconds(None), read_seconds("0.5")
        (120.0, 0.5)
    """
    if text is None:
        return SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"--attack-seconds {text}: expected a positive number of seconds")
    return seconds
