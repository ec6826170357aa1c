"""Every command on every tutorial runs, and prints the lines that the page shows."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_vitlora.flower.simulation.free_ports import free_port
from tests.experiment.test_deployment import listens
from tests.waiting import WATCHDOG, wait_until
from tests.website.tutorials import Block, blocks, masked, missing

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PAGES = sorted(page for page in (ROOT / "docs/tutorials").glob("*.md") if page.stem != "index")
COPIED = ("fl_vitlora", "strategies", "configs", "deploy", "simulate.py")  # what a tutorial uses
PORT = re.compile(r"\b80[01]\d\b")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copies what a newcomer has after a clone, so that a tutorial writes only into the copy."""
    without = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=without)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def environment(checkout: Path) -> dict[str, str]:
    # A run within these tests sets PYTHONSAFEPATH for its workers; a user's shell does not have it.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {
        **own,
        "COLUMNS": "200",
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(checkout),
    }


def with_free_ports(found: list[Block]) -> list[Block]:
    """Gives each port of a page a number that is free on this machine."""
    ports = sorted({port for block in found for port in PORT.findall(block.text)})
    free = {port: str(free_port()) for port in ports}
    changed = []
    for block in found:
        text = PORT.sub(lambda match: free[match[0]], block.text)
        changed.append(Block(language=block.language, title=block.title, text=text))
    return changed


def typed(text: str, folder: Path, environment: dict[str, str]) -> str:
    """Runs the commands of a block, each of which must succeed; returns what they print."""
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=3 * WATCHDOG,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}"
    return done.stdout


@contextlib.contextmanager
def up(block: Block, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Keeps the program of a terminal up, and waits until a server listens."""
    log = folder / f"{block.title}.log"
    with log.open("wb") as file:
        running = subprocess.Popen(
            ["bash", "-c", f"exec {block.text}"],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            if "flower-superlink" in block.text:
                port = block.text.partition("--port ")[2].split()[0]
                wait_until(lambda: listens(f"127.0.0.1:{port}"), lambda: running.poll() is None)
            yield
        finally:
            running.terminate()
            running.wait(timeout=WATCHDOG)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_runs_and_prints_what_the_page_shows(
    page: Path, checkout: Path, environment: dict[str, str]
) -> None:
    printed = ""
    with contextlib.ExitStack() as terminals:
        for block in with_free_ports(blocks(page)):
            if block.is_file:
                assert block.title, f"a block of {block.language} needs the name of a file"
                (checkout / block.title).parent.mkdir(parents=True, exist_ok=True)
                (checkout / block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "text":
                assert missing(block.text, printed) == [], printed[-3000:]
            elif block.stays_up:
                terminals.enter_context(up(block, checkout, environment))
            elif not block.is_long:
                printed = typed(block.text, checkout, environment)


def test_a_tutorial_has_files_commands_and_what_they_print() -> None:
    kinds = {page.stem: {block.language for block in blocks(page)} for page in PAGES}
    assert len(kinds) == 8
    assert all({"sh", "text"} <= found for found in kinds.values()), kinds


def test_a_line_that_is_not_printed_is_found() -> None:
    assert missing("accuracy 95.8 %\n...\nlost 1\n", "accuracy 96 %\n") == ["lost 1"]
    assert masked("took 12 ms") == masked("took 1.5 s")


def test_no_tutorial_is_longer_than_a_few_screens() -> None:
    lengths = {page.stem: len(page.read_text(encoding="utf-8").splitlines()) for page in PAGES}
    assert {name: n for name, n in lengths.items() if n > 160} == {}
