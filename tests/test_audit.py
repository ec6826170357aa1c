"""The audit of installed packages: it reports, or says plainly that it could not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")

# What stands in the place of pip-audit, which no test may ask: it would ask the network.
ABSENT = "raise ModuleNotFoundError('pip_audit')"
UNREACHABLE = "import sys; sys.exit('ConnectionError: failed to resolve the advisory service')"
CLEAN = "import pathlib, sys; pathlib.Path(sys.argv[sys.argv.index('--output') + 1]).write_text('')"
FINDS = f"{CLEAN.replace(repr(''), repr('flwr 1.0 weak'))}; sys.exit(1)"


def audit(folder: Path, main: str) -> subprocess.CompletedProcess[str]:
    package = folder / "pip_audit"
    package.mkdir()
    (package / "__init__.py").write_text(main if main == ABSENT else "")
    (package / "__main__.py").write_text(main)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / ".ci" / "audit"],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("script", ["run", "audit"])
def test_scripts_can_be_read_by_bash(script: str):
    subprocess.run(["bash", "-n", ROOT / ".ci" / script], check=True, timeout=300)


@pytest.mark.parametrize(
    ("main", "code", "told"),
    [
        (ABSENT, 0, "audit skipped: pip-audit is not installed\n"),
        (UNREACHABLE, 0, "audit skipped: the advisory service gave no answer (ConnectionError: "),
        (CLEAN, 0, "audit: no known weakness\n"),
        (FINDS, 1, "flwr 1.0 weak"),
    ],
    ids=["absent", "unreachable", "clean", "finds"],
)
def test_an_audit_reports_or_says_that_it_was_skipped(
    tmp_path: Path, main: str, code: int, told: str
):
    done = audit(tmp_path, main)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(told)
