"""What a worker process imports before it is given work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import strategies

ROOT = Path(__file__).resolve().parents[3]
WORKER = """
import sys
import fl_vitlora.flower.simulation.warm_up
sys.path.insert(0, "")  # as Ray does
import strategies.scaffold
print(strategies.__file__)
"""


def test_a_folder_of_strategies_where_the_user_stands_is_not_taken_for_ours(tmp_path: Path):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("raise RuntimeError('another one')\n")
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", WORKER]  # without the current folder, at first
    told = subprocess.run(
        command, cwd=tmp_path, env=path, check=True, capture_output=True, text=True
    )
    assert Path(told.stdout.strip()) == Path(strategies.__file__)
