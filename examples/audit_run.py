"""Audit a run: attack what it sent and stored, and read the verdicts.

    python audit_run.py

Look at the figures beside those by chance. One key for all images falls to a worker who has a few
ciphertexts; the counts of labels can be read from the first update of a client. "not" means that
this attack did not succeed on this run, and no more.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import fl_vitlora as fv

ATTACKS = ("label_counts", "key_correlations", "second_order", "label_reading", "membership_loss")


def audit(folder: Path) -> list[dict[str, Any]]:
    """Carries out the attacks with the command that a user would type, and returns the outcomes."""
    words = ["fl-vitlora", "simulate", "--attack", str(folder), "--only", ",".join(ATTACKS)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return list(json.loads((folder / "attacks.json").read_text("utf-8"))["attacks"])


if __name__ == "__main__":
    run = fv.run({"clients": 4, "rounds": 3, "record_updates": True})
    print(f"{run.accuracy:.1%} of the test images, in {run.folder}")
    for outcome in audit(run.folder):
        print(f"\n{outcome['attack']} by the {outcome['adversary']}: {outcome['verdict']}")
        for figure in outcome["figures"]:
            by_chance = "" if figure["floor"] is None else f" (by chance {figure['floor']:.1f})"
            print(f"    {figure['name']}: {figure['value']:.1f} {figure['unit']}{by_chance}")
        if outcome["reason"]:
            print(f"    {outcome['reason']}")
