"""The notebook runs from its first cell to its last, in a real kernel with its event loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fl_vitlora as fv
from tests.examples.notebooks import EXTRA, NOTEBOOKS, ROOT, executed, pictures_of, texts_of

NOTEBOOK = ROOT / "examples" / "first_run.ipynb"
nbformat: Any = pytest.importorskip("nbformat", reason=EXTRA)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert texts_of(notebook) == []
    assert all(cell.get("execution_count") is None for cell in notebook.cells)
    assert path.stat().st_size < 20_000


@pytest.mark.slow
def test_the_notebook_trains_plots_predicts_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = executed(NOTEBOOK, tmp_path, monkeypatch)
    assert pictures_of(notebook) == 1
    told = "\n".join(texts_of(notebook))
    scores = re.search(r"(\d+) of 40 new images are right", told)
    assert scores is not None
    assert int(scores[1]) > 20  # of ten classes
    assert told.rstrip().endswith("True")
    assert (tmp_path / "photos.csv").is_file()
    (folder,) = (tmp_path / "runs").glob("*-given-*")
    run = fv.load_run(folder)
    assert f"{run.accuracy:.1%} of the test images" in told
    assert run.history[-1]["accuracy"] == run.accuracy
