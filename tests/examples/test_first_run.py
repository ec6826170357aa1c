"""The notebook runs from its first cell to its last, in a real kernel with its event loop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import fl_vitlora as fv

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"
nbformat: Any = pytest.importorskip("nbformat", reason="needs pip install -e '.[notebook]'")


def texts_of(notebook: Any) -> list[str]:
    """Returns what the cells print, and the values of their last lines."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    ]


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert texts_of(notebook) == []
    assert all(cell.get("execution_count") is None for cell in notebook.cells)
    assert NOTEBOOK.stat().st_size < 20_000


@pytest.mark.slow
def test_the_notebook_trains_plots_predicts_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient: Any = pytest.importorskip("nbclient", reason="needs pip install -e '.[notebook]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises an error if a cell does
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1
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
