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


# A program of a user. A checker of types must know the types of the library, and find a mistake.
TYPED = """
from typing import Any, assert_type

import fl_vitlora as fv
from strategies.fedprox import FedProx

run = fv.run({"clients": 20}, strategy=FedProx(mu=0.1))
assert_type(run, fv.FinishedRun)
assert_type(run.accuracy, float | None)
assert_type(fv.compare({"seeds": [0]}).rows, list[dict[str, Any]])
fv.run(clients=20)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the package, installed from its wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, site = folder / "source", folder / "wheels", folder / "site"
    call("git", "clone", "--quiet", ROOT, source, folder=folder)  # a build writes into its tree
    pip = (sys.executable, "-m", "pip", "--quiet")
    call(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source, folder=folder)
    (wheel,) = wheels.glob("*.whl")
    call(*pip, "install", "--no-deps", "--target", site, wheel, folder=folder)
    return site


@pytest.mark.slow
def test_a_users_program_is_checked_with_the_types_of_the_wheel(site: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG,
    )
    (mistake,) = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert 'Unexpected keyword argument "clients" for "run"' in mistake
    assert mistake.startswith("program.py:")


@pytest.mark.slow
def test_the_wheel_runs_an_experiment_outside_the_checkout(site: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
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
