"""The package as users install it: a wheel, without the checkout around it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG = 900  # seconds


def call(*words: str | Path, folder: Path, **variables: str) -> str:
    """Runs a program in a folder, and returns what it prints."""
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_an_experiment_outside_the_checkout(tmp_path: Path) -> None:
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    work = tmp_path / "work"
    work.mkdir()
    call("git", "clone", "--quiet", ROOT, source, folder=tmp_path)  # a build writes into its tree
    pip = (sys.executable, "-m", "pip", "--quiet")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source, folder=tmp_path)
    (wheel,) = wheels.glob("*.whl")
    call(*pip, "install", "--no-deps", "--target", site, wheel, folder=tmp_path)

    found = {"PYTHONPATH": str(site), "FLWR_TELEMETRY_ENABLED": "0"}
    where = "import fl_vitlora, strategies; print(fl_vitlora.__file__, strategies.__file__)"
    places = call(sys.executable, "-c", where, folder=work, **found).split()
    assert all(Path(place).is_relative_to(site) for place in places)

    program = (sys.executable, site / "bin" / "fl-vitlora")
    words = ("--clients", "2", "--rounds", "1", "--set", "data.limit=40", "--out", "run")
    told = call(*program, "simulate", *words, folder=work, **found)
    assert "round 1/1" in told
    assert json.loads((work / "run" / "result.json").read_text())["rounds"] == 1
    assert "report.html" in call(*program, "report", "run", folder=work, **found)
    again = call(*program, "simulate", "--resume", "run", folder=work, **found)
    assert "accuracy" in again  # a finished run is shown, not trained again
