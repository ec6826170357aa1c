"""Pages of the site for files outside of `docs/` to which a page links.

A page in Markdown, such as `deploy/README.md`, becomes a page. A source file becomes a page that
shows its text, and a folder becomes a page that lists its files. So no link leads out of the site,
and a site that is read offline is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from website.repository_markdown import DOCS, REPOSITORY, place_of, targets

LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".ipynb": "json"}
UNSEARCHED = "---\nsearch:\n  exclude: true\n---\n"
HIDDEN = ("__pycache__",)


def path_of(place: str) -> str:
    """Returns the path in the repository of a page of the site.

    Example:
        >>> path_of("data.md"), path_of("repository/deploy/README.md")
        ('docs/data.md', 'deploy/README.md')
        >>> path_of("repository/deploy/app.py.md")
        'deploy/app.py'
    """
    if not place.startswith(REPOSITORY):
        return DOCS + place
    path = place.removeprefix(REPOSITORY)
    stem = path.removesuffix(".md")
    return stem if "." in stem.rpartition("/")[2] else path


def pages(root: Path, generated: Mapping[str, str], named: Iterable[str]) -> dict[str, str]:
    """Returns, for each place in the site, the text of a page for a file outside of `docs/`.

    Args:
        root: The root of the repository.
        generated: The pages that are made from the code, which may have links, too.
        named: Places in the site that the navigation names.
    """
    docs = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in pages_in(root)}
    found = {name: page_of(root, path_of(name)) for name in named if name.startswith(REPOSITORY)}
    waiting = docs | {path_of(place): text for place, text in {**generated, **found}.items()}
    while waiting:
        path, text = waiting.popitem()
        for target in targets(text, path):
            place = place_of(target)
            if target.startswith(DOCS) or place in found or not (root / target).exists():
                continue  # mkdocs itself reports a link that leads nowhere
            found[place] = page_of(root, target)
            if target.endswith(".md"):
                waiting[target] = found[place]
    return found


def pages_in(root: Path) -> Iterator[Path]:
    """Yields the pages in `docs/`."""
    yield from sorted((root / DOCS).rglob("*.md"))


def page_of(root: Path, path: str) -> str:
    """Returns the text of the page for a file or a folder of the repository."""
    file = root / path
    if path.endswith(".md"):
        return file.read_text(encoding="utf-8")
    if not file.is_dir():
        return f"{UNSEARCHED}\n# `{path}`\n\n{_shown(file)}"
    inside = sorted(found for found in file.rglob("*") if found.is_file() and _is_source(found))
    parts = [f"## `{found.relative_to(file).as_posix()}`\n\n{_shown(found)}" for found in inside]
    return f"{UNSEARCHED}\n# `{path}/`\n\n" + "\n".join(parts)


def _is_source(file: Path) -> bool:
    return file.suffix in LANGUAGES and not set(HIDDEN) & set(file.parts)


def _shown(file: Path) -> str:
    """Returns a file as a block of code; the fence is longer than any fence in the file."""
    text = file.read_text(encoding="utf-8").rstrip("\n")
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{LANGUAGES.get(file.suffix, 'text')}\n{text}\n{fence}\n"
