"""Audits a finished run: attacks its messages and files, and writes the outcomes to a file.

The outcomes are in the file `attacks.json` in the run folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fl_vitlora.attacks.audit import Began, audit
from fl_vitlora.attacks.bounds import check_bounds
from fl_vitlora.attacks.results import RULE, Outcome
from fl_vitlora.attacks.shelf import attack_of
from fl_vitlora.config import Config
from fl_vitlora.config.attack_bounds import Bound
from fl_vitlora.experiment.adversaries import Adversaries
from fl_vitlora.experiment.attacked_run import open_run
from fl_vitlora.reporting.attack_pictures import draw_pictures
from fl_vitlora.reporting.run_folder import RunFolder

ATTACKS = "attacks.json"


def attack_run(
    folder: Path,
    config: Config,
    strategy: object,
    names: Sequence[str],
    images: int,
    *,
    bounds: Sequence[Bound] = (),
    seconds: float = math.inf,
    began: Began = lambda attack, adversary: None,
    pictures: bool = False,
) -> Iterator[Outcome]:
    """Carries out attacks on a finished run, and writes their outcomes into its folder.

    Args:
        folder: The run folder.
        config: The settings of the run, in which paths lead to the files that the run used.
        strategy: The strategy of the run.
        names: The names of the attacks, as `config.attack_names.read_attacks` returns them.
        images: The number of encrypted images that an attack on ciphertext may use.
        bounds: Bounds, of which only names are checked; see `attacks.bounds.broken` for the rest.
        seconds: The time budget of each attack in seconds.
        began: A function that is called with the names of an attack and its adversary before the
            attack is carried out.
        pictures: True if the images that attacks recover shall be drawn into the run folder. The
            pictures show plain images of the owners.

    Yields:
        Each outcome as soon as it is known. After the last outcome, `attacks.json` is written.

    Raises:
        UserError: If an attack cannot be imported, if a bound has an unknown name, or if the run
            cannot be audited.
    """
    attacks = {name: attack_of(name, images) for name in names}
    check_bounds(bounds, attacks)
    adversaries = Adversaries(run=open_run(folder, config, strategy))
    told = []
    for outcome in audit(
        attacks,
        adversaries.views,
        adversaries.truth,
        seconds=seconds,
        began=began,
        pictures=pictures,
    ):
        told.append(described(outcome) | {"picture": draw_pictures(folder, outcome)})
        yield outcome
    content = {"images": images, "rule": RULE, "attacks": told}
    RunFolder(folder).write_json(ATTACKS, content)


def described(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome in the form of the file `attacks.json`.

    Example:
        >>> described(Outcome(attack="span", adversary="server", reason="only sums"))["verdict"]
        'not applicable'
    """
    return {
        "attack": outcome.attack,
        "adversary": outcome.adversary,
        "verdict": outcome.verdict,
        "reason": outcome.reason or None,
        "seconds": round(outcome.seconds, 3),
        "victims": outcome.victims,
        "figures": [asdict(figure) for figure in outcome.figures],
    }
