"""Runs the notebooks of the examples folder in a real kernel with its event loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
EXTRA = "needs pip install -e '.[notebook]'"


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs all cells of a notebook in a folder, and returns the notebook with its outputs."""
    nbformat: Any = pytest.importorskip("nbformat", reason=EXTRA)
    nbclient: Any = pytest.importorskip("nbclient", reason=EXTRA)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=3600, resources=resources).execute()  # or an error
    return notebook


def texts_of(notebook: Any) -> list[str]:
    """Returns what the cells print, and the values of their last lines."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    ]


def pictures_of(notebook: Any) -> int:
    """Returns the number of pictures that the cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)
