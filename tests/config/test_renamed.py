"""Experiments that were written before a setting got its present name."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_vitlora.config import load
from fl_vitlora.errors import UserError


def written(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("old", "new"), [("true", "auto"), ("false", "float32")])
def test_an_older_name_means_the_same_as_before(old: str, new: str, tmp_path: Path):
    config = load(written(tmp_path, f"engine:\n  mixed_precision: {old}\n  workers: 2\n"))
    assert (config.engine.precision, config.engine.workers) == (new, 2)


@pytest.mark.parametrize(
    "text", ["engine: {mixed_precision: 1}", "engine: {mixed_precision: true, precision: auto}"]
)
def test_an_older_name_whose_meaning_is_not_clear_is_refused(text: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"engine\.mixed_precision.*engine\.precision"):
        load(written(tmp_path, text))


def test_only_a_file_may_use_an_older_name():
    with pytest.raises(UserError, match=r"engine\.mixed_precision.*engine\.precision"):
        load(None, {"engine.mixed_precision": True})
