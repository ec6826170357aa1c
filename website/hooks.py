"""The hooks that mkdocs calls while it builds the site; `mkdocs.yml` names this file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # mkdocs imports this file by its path
    sys.path.insert(0, str(ROOT))

from website import command_pages, repository_pages, settings_pages, shelf_pages  # noqa: E402
from website.repository_markdown import four_spaces, with_site_links  # noqa: E402

FROM_DISK = "search_from_disk.js"  # makes the search work when a page is opened from the disk
SETTINGS = "Settings"  # the entry of the navigation that gets a page for each group of settings


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the pages about settings to the navigation, one for each group."""
    found = _lists_of(config.nav, SETTINGS)
    if len(found) != 1:
        raise ValueError(f"mkdocs.yml: expected one list {SETTINGS!r} in nav, found {len(found)}")
    found[0].extend(settings_pages.navigation())
    return config


def _lists_of(nav: Any, title: str) -> list[list[Any]]:
    """Returns the lists in a navigation that have this title."""
    found: list[list[Any]] = []
    for entry in nav if isinstance(nav, list) else []:
        for name, below in entry.items() if isinstance(entry, dict) else ():
            found += [below] if name == title and isinstance(below, list) else []
            found += _lists_of(below, title)
    return found


def _places_in(nav: Any) -> Iterator[str]:
    """Yields the places of all pages in a navigation."""
    if isinstance(nav, str):
        yield nav
    for below in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _places_in(below)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds all pages that are made from the code and from files outside of `docs/`."""
    generated = settings_pages.pages() | command_pages.pages() | shelf_pages.pages()
    generated |= repository_pages.pages(ROOT, generated, _places_in(config.nav))
    for place, text in generated.items():
        files.append(File.generated(config, place, content=text))
    script = (ROOT / "website" / FROM_DISK).read_text(encoding="utf-8")
    files.append(File.generated(config, f"assets/{FROM_DISK}", content=script))
    return files


@event_priority(-100)  # after the search plugin has written its index
def on_post_build(config: MkDocsConfig) -> None:
    """Writes the index of the search as a script, because a page on the disk may not read JSON."""
    folder = Path(config.site_dir) / "search"
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", encoding="utf-8")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the text of a page as Python-Markdown reads it, with links that stay in the site."""
    del config, files
    place = page.file.src_uri
    return four_spaces(with_site_links(markdown, repository_pages.path_of(place), place))
