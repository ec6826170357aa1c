"""Help: one screen of common flags, and a page with every flag and every setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fl_vitlora import config
from fl_vitlora.command_line.flags import COMMON, FLAGS, OTHER_FLAGS
from fl_vitlora.command_line.help_pages import intervals
from fl_vitlora.config import settings
from tests.waiting import WATCHDOG

ROOT = Path(__file__).resolve().parents[2]


def shown_by(flag: str) -> str:
    """Returns what the program prints."""
    done = subprocess.run(
        [sys.executable, "simulate.py", flag],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_help_fits_one_screen_and_shows_the_common_flags_and_two_commands() -> None:
    lines = shown_by("--help").splitlines()
    assert len(lines) <= 42
    assert [line for line in lines if len(line) > 80] == []
    flags = [line.split()[0] for line in lines if line.startswith("  --")]
    assert flags == list(COMMON)
    assert sum(line.startswith("  python simulate.py ") for line in lines) == 2
    assert "--help-all" in lines[-1]


def test_help_all_explains_every_setting_with_its_range() -> None:
    page = shown_by("--help-all")
    told = " ".join(page.split())
    missing = [
        (path, explanation)
        for path, _, explanation in settings.explanations(config.Config)
        if f" {path} " not in told or " ".join(explanation.split()) not in told
    ]
    assert missing == []
    ranges = dict(intervals(config.Config))
    assert len(ranges) > 20
    for path, interval in ranges.items():
        after = told.partition(f" {path} ")[2]
        assert after.find(f"Range: {interval}.") >= 0, path
    assert [line for line in page.splitlines() if len(line) > 80] == []
    assert all(flag in told for flag in [*FLAGS, *OTHER_FLAGS, "--help-all", "--version"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_terminal_of_another_encoding_gets_help_tables_and_mistakes(encoding: str) -> None:
    show = (
        "import simulate; from fl_vitlora.command_line.help_pages import every_setting\n"
        "from fl_vitlora.reporting.output import outlive_readers\n"
        "from rich.console import Console\n"
        "outlive_readers(); Console().print('95.6 \\u00b1 0.5 \\u2013 \\u65e5')\n"
        "print(every_setting()); simulate.main(['--set', 'clients=\\u65e5'])"
    )
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, "-c", show],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        timeout=WATCHDOG,
    )
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 2, err
    assert out.splitlines()[0] in ("95.6 +- 0.5 - \\u65e5", "95.6 ± 0.5 - \\u65e5")
    assert "encryption.steps" in out
    assert err == "simulate.py: clients: expected a whole number, got '\\u65e5'\n"
