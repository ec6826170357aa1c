"""The site is built strictly, has what the code has, and asks no other host for anything."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import strategies
from fl_vitlora import config
from fl_vitlora.communication.codecs import CODECS
from fl_vitlora.config.attack_names import ATTACKS
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.config.optimizer_names import OPTIMIZERS
from fl_vitlora.config.predictor_names import PREDICTORS
from fl_vitlora.config.settings import explanations
from fl_vitlora.encryption.steps import STEPS
from tests.browser import browser_page, chromium
from website import settings_pages
from website.figures import FIGURES, FOLDER

ROOT = Path(__file__).resolve().parents[2]
LOADS = {"src", "srcset", "data", "poster", "background", "action", "formaction"}
ADDRESS = re.compile(r"(?:https?:)?//[\w.-]+\.\w+", re.IGNORECASE)
STYLE_ADDRESS = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
SHELVES = {
    "strategies": strategies.available(),
    "methods": PARTS,
    "codecs": CODECS,
    "encryption": STEPS,
    "attacks": ATTACKS,
    "optimisers-and-predictors": [*OPTIMIZERS, *PREDICTORS],
}
OPENED = ("index.html", "explanations/key-adaptation.html", "reference/settings/data.html")


def build(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(out),
        *options,
    ]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(out)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search(r"^(WARNING|ERROR)", done.stderr, re.MULTILINE), done.stderr[-3000:]
    return out


class Loads(HTMLParser):
    """Finds what a page loads when it is opened; links that a reader may click are no loads."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.found += [value for name, value in known.items() if name in LOADS]
        self.found += [known["href"]] if tag in ("link", "use", "image") and "href" in known else []
        self.found += style_addresses(known.get("style", ""))


def style_addresses(text: str) -> list[str]:
    return [first or second for first, second in STYLE_ADDRESS.findall(text)]


def test_no_page_loads_anything_from_another_host(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 60
    loads = {page: [found for found in Loads(page).found if ADDRESS.match(found)] for page in pages}
    assert {page: found for page, found in loads.items() if found} == {}
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    assert not [page for page, text in texts.items() if 'class="mermaid"' in text]


def test_no_style_and_no_figure_loads_anything_from_another_host(site: Path) -> None:
    files = [*site.rglob("*.css"), *site.rglob("*.svg")]
    assert len(files) > len(FIGURES)
    for file in files:
        found = style_addresses(file.read_text(encoding="utf-8"))
        assert [address for address in found if ADDRESS.match(address)] == [], file


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_a_browser_asks_for_files_of_the_site_alone(site: Path, tmp_path: Path) -> None:
    program = chromium()
    assert program is not None
    with browser_page(program, tmp_path / "profile") as page:
        for name in OPENED:
            page.open(site / name, width=1200, ready="document.readyState === 'complete'")
    assert len(page.requests) > len(OPENED)
    assert [
        address for address in page.requests if not address.startswith(("file:", "data:"))
    ] == []


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_setting_is_on_the_page_of_its_group(site: Path) -> None:
    for path, _, explanation in explanations(config.Config):
        group = path.partition(".")[0] if "." in path else settings_pages.EXPERIMENT
        text = text_of(site / "reference/settings" / f"{group}.html")
        assert path in text
        assert explanation.replace("`", "") in " ".join(text.split()), path


@pytest.mark.parametrize("shelf", SHELVES)
def test_everything_on_a_shelf_of_the_code_is_on_its_page(site: Path, shelf: str) -> None:
    headings = re.findall(
        r"<code>([\w]+)</code>", (site / f"reference/shelves/{shelf}.html").read_text("utf-8")
    )
    assert set(SHELVES[shelf]) <= set(headings)


def test_the_help_of_every_command_is_on_the_page_of_commands(site: Path) -> None:
    text = text_of(site / "reference/commands.html")
    for command in ("encrypt", "decrypt", "keys rotate", "predict", "export", "report"):
        assert f"usage: fl-vitlora {command}" in text


def test_every_page_can_be_found(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    assert {"tutorials/write-a-strategy.html", "trust.html", "reference/commands.html"} <= found


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_what_its_code_draws(name: str) -> None:
    drawn = FIGURES[name]().svg()
    assert (FOLDER / f"{name}.svg").read_text(encoding="utf-8") == drawn, (
        "python -m website.figures"
    )


@pytest.mark.parametrize("link", ["lost.md", "index.md#lost", "/absolute.md"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n[a link]({link})\n", encoding="utf-8")
    own = (
        f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: docs\nhooks: []\nplugins: []\nnav: [index.md]\n"
    )
    (tmp_path / "mkdocs.yml").write_text(own, encoding="utf-8")
    done = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == 1
    assert link in done.stderr
