"""The files by which a public project is cited, reported to and contributed to."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import fl_vitlora

ROOT = Path(__file__).resolve().parent.parent
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_citation_package_and_program_have_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == project["version"] == fl_vitlora.__version__
    assert citation["license"] == project["license"]


def test_the_citation_has_what_the_format_requires() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    paper = citation["references"][0]
    assert {"type", "title", "authors"} <= set(paper)
    assert "2507.11943" in paper["url"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_every_field_of_an_issue_form_has_a_label(form: Path) -> None:
    content = read_yaml(form)
    if form.stem == "config":
        assert content["blank_issues_enabled"]
        return
    assert content["name"]
    assert content["description"]
    assert all(field["attributes"]["label"] for field in content["body"])


def test_hooks_before_a_commit_are_what_make_check_runs() -> None:
    hooks = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in hooks:
        assert hook["entry"].split(" --force-exclude")[0].split(" --check")[0] in recipe
