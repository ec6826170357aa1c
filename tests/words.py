"""Finds texts that a reader stumbles over: sentences without a subject, and sentences too long.

python -m tests.words

The program reads docstrings, explanations of settings and flags, error messages, pages and
notebooks, prints one line for each fault, and ends with exit code 1 if there is any. Misspelt
words are found by codespell, whose settings are in `pyproject.toml`. `make check` runs both.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CODE = (
    "fl_vitlora",
    "strategies",
    "benchmarks",
    "examples",
    "website",
    "tests",
    "deploy",
    "simulate.py",
)
PAGES = ("*.md", "docs/**/*.md", "strategies/*.md", "deploy/*.md", "examples/*.md", ".github/*.md")
MOST_WORDS = 45  # in a sentence; most have fewer than 20

# A text that is read alone must not begin with one of these: its subject would be missing.
NEVER_FIRST = ("Tells", "Who", "Whom", "Whose", "Ditto", "Likewise")
FRAGMENT = re.compile(
    rf"({'|'.join(NEVER_FIRST)}|Of (it|them|which|whom)|The same(?=[.,;:]| as\b| for\b| but\b))\b"
)
FIRST_OF_ENTRY = re.compile(rf"({'|'.join(NEVER_FIRST)}|Of|As|Also|And|Or|Nor|Than|The same as)\b")
CONDITION = re.compile(r"(If|When|Always|Whatever)\b")  # begins an entry of Raises

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Warns")
SECTION = re.compile(r"^(\w+( \w+)?):$")
ENTRY = re.compile(r"^ {4}(\*{0,2}[\w.`, ]+): +(?=\S)")
ERRORS = re.compile(r"(Error|Exception|Warning)$")
SENTENCE_END = re.compile(r"(?<!\bal\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<=[.?!])[\"')*\]]*\s+")
CODE_BLOCK = re.compile(r"^( *)```.*?^ *```", flags=re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", flags=re.S)
LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]+\)")
INLINE_CODE = re.compile(r"`[^`\n]*(\n[^`\n]*)?`")
NOT_PROSE = re.compile(r" {4}|python |fl-vitlora |\S.*\S {2,}\S")  # formula, command or table
LEGEND = re.compile(r"(Letters in shapes|Sources?):")  # a list, and no sentence
NEW_ITEM = re.compile(r"^\s*([*+-]|\d+\.|#+|>)\s+")


class Text(NamedTuple):
    """A text that a person reads.

    Attributes:
        place: The file and the line where the text begins.
        kind: The kind of the text: "first line", "entry", "raises", "setting", "text" or "heading".
        words: The text, in one line.
    """

    place: str
    kind: str
    words: str


def one_line(text: str) -> str:
    return " ".join(text.split())


def faults_of(text: Text) -> Iterator[str]:
    """Yields what is wrong with a text."""
    shown = text.words[:70]
    pattern = FRAGMENT if text.kind == "text" else FIRST_OF_ENTRY
    found = None if text.kind == "heading" else pattern.match(text.words)
    if found and not text.words.endswith("?"):
        yield f"{text.place}: begins with {found[0]!r}, without a subject: {shown}"
    elif text.kind == "raises" and not CONDITION.match(text.words):
        yield f"{text.place}: expected a condition (If ...) for an error: {shown}"
    for number, sentence in enumerate(SENTENCE_END.split(text.words)):
        if LEGEND.match(text.words):
            continue
        if len(sentence.split()) > MOST_WORDS:
            yield f"{text.place}: a sentence of {len(sentence.split())} words: {sentence[:70]}"
        found = FRAGMENT.match(sentence)
        if number and found and not sentence.endswith("?"):
            yield f"{text.place}: a sentence begins with {found[0]!r}: {sentence[:70]}"


def texts_of_docstring(place: str, docstring: str) -> Iterator[Text]:
    """Yields the first line of a docstring, its paragraphs, and the entries of its sections."""
    first, _, rest = inspect.cleandoc(docstring).partition("\n")
    yield Text(place, "first line", one_line(first))
    section, begun = "", list[str]()

    def ended() -> Iterator[Text]:
        kind = {"": "text", "Raises": "raises"}.get(section, "entry")
        if begun:
            yield Text(place, kind, one_line(" ".join(begun)))
        begun.clear()

    for line in [*rest.splitlines(), ""]:
        entry = ENTRY.match(line) if section not in ("", "Returns", "Yields") else None
        if head := SECTION.match(line):
            yield from ended()
            section = head[1] if head[1] in SECTIONS else "other"
        elif not line.strip() or entry:
            yield from ended()
            if entry:
                begun.append(line[entry.end() :])
            if not line.strip() and section == "other":
                section = ""
        elif section and not line.startswith(" "):
            yield from ended()
            section = ""
            begun.append(line)
        elif section == "" and NOT_PROSE.match(line):
            yield from ended()
        elif section == "" and (item := NEW_ITEM.match(line)):
            yield from ended()
            begun.append(line[item.end() :])
        elif section != "other":
            begun.append(line)


def literal(node: ast.AST | None) -> str | None:
    """Returns the text of a literal, in which X stands for each value; None if there is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(part) or "X" for part in node.values)
    return None


def texts_of_call(place: str, call: ast.Call) -> Iterator[Text]:
    """Yields the explanation of a setting or a flag, a help text, or the message of an error."""
    name = ast.unparse(call.func).rpartition(".")[2]
    found: list[tuple[str, ast.AST | None]] = [
        ("setting", word.value) for word in call.keywords if word.arg in ("help", "description")
    ]
    if name == "setting" and len(call.args) > 1:
        found.append(("setting", call.args[1]))
    elif name == "SettingFlag":
        found.append(("setting", call.args[2]))
    elif name == "OtherFlag":
        found.append(("setting", call.args[1]))
    elif ERRORS.search(name) and call.args:
        found.append(("text", call.args[0]))
    for kind, node in found:
        if words := literal(node):
            yield Text(place, kind, one_line(words))


def texts_of_code(name: str, source: str) -> Iterator[Text]:
    """Yields the texts of a Python file."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
            yield from texts_of_docstring(f"{name}:{node.body[0].lineno}", docstring)
        elif isinstance(node, ast.Call):
            yield from texts_of_call(f"{name}:{node.lineno}", node)


def texts_of_page(name: str, page: str) -> Iterator[Text]:
    """Yields the paragraphs, list items and table cells of a page in Markdown."""
    for hidden in (CODE_BLOCK, COMMENT):
        page = hidden.sub(lambda found: "\n" * found[0].count("\n"), page)
    page = INLINE_CODE.sub(lambda found: "code" + "\n" * found[0].count("\n"), page)
    begun, began, kind = list[str](), 0, "text"
    for number, line in enumerate([*LINK.sub(r"\1", page).splitlines(), ""], 1):
        item = NEW_ITEM.match(line)
        if begun and (item or not line.strip() or line.startswith("|")):
            yield Text(f"{name}:{began}", kind, one_line(" ".join(begun)))
            begun = []
        if line.startswith("|"):
            cells = (cell.strip() for cell in line.strip("| ").split("|"))
            yield from (Text(f"{name}:{number}", "text", cell) for cell in cells)
        elif line.strip():
            if not begun:
                began, kind = number, "heading" if line.startswith("#") else "text"
            begun.append(line[item.end() :] if item else line)


def texts() -> Iterator[Text]:
    """Yields all texts of this project."""
    for folder in CODE:
        place = ROOT / folder
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            yield from texts_of_code(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    for path in sorted({path for pattern in PAGES for path in ROOT.glob(pattern)}):
        if path.name != "CHANGELOG.md":
            yield from texts_of_page(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    for path in sorted(ROOT.glob("examples/*.ipynb")):
        for cell in json.loads(path.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                name = f"{path.relative_to(ROOT)}, cell {cell['id']}"
                yield from texts_of_page(name, "".join(cell["source"]))


def faults(found: Iterable[Text]) -> list[str]:
    """Returns what is wrong with texts, one line for each fault."""
    return [fault for text in found for fault in faults_of(text)]


def main() -> int:
    """Prints all faults, and returns the exit code."""
    found = faults(texts())
    for fault in found:
        print(fault)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
