"""The pages for readers: every link leads somewhere, and the README keeps to its shape."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from website import command_pages, settings_pages, shelf_pages

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "strategies/*.md",
        "deploy/*.md",
        "benchmarks/**/*.md",
        "examples/*.md",
    )
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # it names files as they were
)
# Pages of the documentation site that are made from the code when the site is built.
MADE = {
    ROOT / "docs" / place
    for place in (*settings_pages.pages(), *command_pages.pages(), *shelf_pages.pages())
}
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:tests|fl_vitlora|benchmarks|configs|deploy|docs)/[\w/.-]+\.\w+)`")


def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ +(.+)$", prose, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Returns the links and names of files on a page that lead nowhere."""
    text = page.read_text(encoding="utf-8")
    named = [name for name in FILE.findall(text) if "NAME" not in name]
    lost = [name for name in named if not (ROOT / name).exists()]
    for link in LINK.findall(text):
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if "://" in link or target.resolve() in MADE:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_every_file_that_is_named_exists(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One title\n[a](#one-title) [b](#two) [c](other.md) `docs/lost.md`\n")
    assert broken(page) == ["docs/lost.md", "#two", "other.md"]


def test_the_readme_is_short_and_shows_a_picture_and_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    begin = text.index("<!-- quick start -->")
    picture = text.index("](docs/picture.png)")
    assert picture < begin
    assert (ROOT / "docs" / "picture.png").stat().st_size < 150_000
    quick_start = text[begin : text.index("<!-- end -->")]
    assert len(re.findall(r"^python -m pip install ", quick_start, flags=re.M)) == 2
