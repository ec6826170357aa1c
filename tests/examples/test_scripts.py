"""The scripts of the examples folder run as their readers run them, and show what they promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))
WATCHDOG = 600  # seconds
CHANCE = 10.0  # accuracy of guessing one of ten digits, in percent


def shown_by(name: str, folder: Path) -> str:
    """Runs a script in a folder that has nothing but the script, and returns what it prints."""
    shutil.copy(EXAMPLES / name, folder)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # A run within these tests sets PYTHONSAFEPATH for its workers; a user's shell does not have it.
    own = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**own, "PYTHONPATH": str(ROOT), "PATH": programs},
        capture_output=True,
        text=True,
        check=False,
        timeout=WATCHDOG,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(pattern, text, flags=re.M)]


def test_every_example_is_short_and_in_the_table_of_the_folder() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = [*SCRIPTS, *(path.name for path in EXAMPLES.glob("*.ipynb"))]
    assert len(SCRIPTS) >= 5
    assert re.findall(r"^\| \[(.+?)\]", page, flags=re.M) == sorted(
        names, key=lambda name: page.find(f"| [{name}]")
    )
    for name in SCRIPTS:
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60, name
        assert f"    python {name}\n" in text


@pytest.mark.slow
def test_the_strategy_trains_only_the_head_at_first(tmp_path: Path) -> None:
    told = shown_by("own_strategy.py", tmp_path)
    sent = numbers(r"clients sent (\d+) kB", told)
    assert len(sent) == 6
    assert max(sent[:2]) < min(sent[2:]) / 5
    assert numbers(r"^round 6: ([\d.]+)%", told)[0] > 3 * CHANCE


@pytest.mark.slow
def test_the_method_is_compared_with_lora(tmp_path: Path) -> None:
    told = shown_by("own_method.py", tmp_path)
    rows = dict(re.findall(r"^\| ([\w:+]+) \| (\d[\d.]+) \|", told, flags=re.M))
    assert set(rows) == {"own_method:LastBlocks+patch_embed", "lora", "head"}, told
    assert all(float(accuracy) > 3 * CHANCE for accuracy in rows.values())


@pytest.mark.slow
def test_owners_encrypt_and_the_site_trains_without_their_key(tmp_path: Path) -> None:
    told = shown_by("encrypt_and_train.py", tmp_path)
    assert numbers(r"the site measures ([\d.]+)%", told)[0] > 3 * CHANCE
    right, of = numbers(r"classify (\d+) of", told)[0], numbers(r"of (\d+) new", told)[0]
    assert of == 40
    assert 100 * right / of > 3 * CHANCE
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    shards = [path for path in files if path.suffix == ".safetensors"]
    assert len(shards) == 4
    assert sorted(path.suffix for path in set(files) - set(shards)) == [".key", ".key"]
    assert not (tmp_path / "keys").exists()  # where a run makes its key ring
    ring = (tmp_path / "owners" / "shared.key").read_bytes()
    assert all(path.read_bytes() != ring for path in files)


@pytest.mark.slow
def test_codecs_shrink_the_bytes_of_an_update_one_after_the_other(tmp_path: Path) -> None:
    told = shown_by("codec_bytes.py", tmp_path)
    rows = re.findall(r"^(\S+) +([\d,]+) +([\d.]+) +([\d.]+) +([\d.]+)x$", told, flags=re.M)
    assert [row[0] for row in rows] == ["float32", "int8", "int4", "ecsq(1.4)", "topk(0.1)+sign"]
    updates = [int(row[1].replace(",", "")) for row in rows]
    savings = [float(row[4]) for row in rows]
    assert updates == sorted(updates, reverse=True)
    assert savings == sorted(savings)
    assert updates[0] > 4 * 14_890  # the trained numbers, four bytes each


@pytest.mark.slow
def test_the_audit_finds_the_key_and_says_by_whom(tmp_path: Path) -> None:
    told = shown_by("audit_run.py", tmp_path)
    verdicts = dict(re.findall(r"^(\w+ by the \w+): (.+)$", told, flags=re.M))
    assert verdicts["second_order by the worker"] == "recovered"
    assert verdicts["key_correlations by the server"] in ("recovered", "partly")
    assert verdicts["second_order by the thief"] == "not applicable"
    assert len(verdicts) == 8
