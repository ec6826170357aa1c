"""The notebook that compares methods at equal bytes: no run sends more than the budget."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.notebooks import ROOT, executed, pictures_of, texts_of

METHODS = {"head", "bias", "lora", "lora+patch_embed"}


@pytest.mark.slow
def test_methods_are_compared_within_one_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = executed(ROOT / "examples" / "equal_bytes.ipynb", tmp_path, monkeypatch)
    assert pictures_of(notebook) == 1
    told = "\n".join(texts_of(notebook))
    most = re.search(r"no run sent more than ([\d.]+) MB", told)
    assert most is not None
    assert 0.5 < float(most[1]) <= 2
    compared = re.findall(r"^(\S+) minus lora: [+-][\d.]+ \u00b1 [\d.]+ points$", told, flags=re.M)
    assert set(compared) == METHODS - {"lora"}
