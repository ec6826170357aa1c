"""The command line, run in a folder that holds an author's own modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def simulate_in(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a folder whose modules can be imported."""
    return subprocess.run(
        [sys.executable, str(ROOT / "simulate.py"), *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{place}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
