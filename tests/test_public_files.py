"""The files by which a public project is cited, reported to and contributed to."""

from __future__ import annotations

import re
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


def read_project(name: str) -> Any:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))["project"]


def test_citation_packages_program_and_changelog_have_one_version() -> None:
    project, deployed = read_project("pyproject.toml"), read_project("deploy/pyproject.toml")
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["version"] == project["version"] == fl_vitlora.__version__
    assert deployed["version"] == project["version"]
    assert citation["license"] == project["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, day = re.findall(r"^## \[(\d.*?)\] - (\S+)$", changelog, flags=re.M)[0]
    assert version == project["version"]
    assert day == citation["date-released"].isoformat()


def test_the_classifiers_name_the_oldest_python_that_is_required() -> None:
    project = read_project("pyproject.toml")
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: 3." in line]
    assert f">={named[0]}" == project["requires-python"]
    assert "Typing :: Typed" in project["classifiers"]
    assert (ROOT / "fl_vitlora" / "py.typed").exists()


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
