"""Pages about what a user can choose, such as strategies, methods, codecs and attacks.

Each page is made from the table in the code that also reads the user's choice, and from the
docstrings of the files behind the table. So a file that is added to a table is on its page.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import strategies
from fl_vitlora.attacks.shelf import attack_of
from fl_vitlora.command_line.help_pages import plain
from fl_vitlora.communication.codecs import CODECS, Codec
from fl_vitlora.config import SCHEMES
from fl_vitlora.config.attack_names import ATTACKS, ON_REQUEST
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.config.optimizer_names import OPTIMIZERS
from fl_vitlora.config.predictor_names import PREDICTORS
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.finetuning.shelf import part_class
from fl_vitlora.strategy import Strategy
from fl_vitlora.training.optimizers import optimizer_of
from fl_vitlora.training.prediction import predictor_of
from website.settings_pages import escaped

FOLDER = "reference/shelves/"
UP = "../../../"  # from a page here to the root of the repository
STRATEGIES = """# Strategies

These are the names for `--strategy`. Set a parameter with `--set strategy.NAME=VALUE`.
[Write your own](../../tutorials/write-a-strategy.md), or read [the
comparison](../../strategies.md). This page is made from the docstrings of the code.

The columns say whether a strategy needs LoRA, whether clients may have different ranks, and whether
secure aggregation is possible.
"""
METHODS = """# Fine-tuning methods

These are the parts for `--method`, which can be added up: `lora+patch_embed`. Set `rank`, `alpha`
and `targets` with `--set finetuning.NAME=VALUE`, and all other parameters with
`--set finetuning.parameters.NAME=VALUE`. [Write your own](../../tutorials/write-a-method.md), or
read [the comparison](../../methods.md). This page is made from the docstrings of the code.

The columns say whether the trained tensors can be merged into a plain timm model, and whether
several clients can be trained in one batch.
"""
CODEC_NAMES = """# Codecs

These are the names for `compression.uplink` and `compression.downlink`: transforms first, then one
quantiser, joined by `+`, such as `topk(0.1)+int4`. With `every(n)+` in front, a group is sent in
every n-th round. [Communication](../../communication.md) compares the codecs. This page is made
from the docstrings of the code.
"""
ENCRYPTION = """# Encryption steps and schemes

The setting `encryption.steps` takes a list of steps, or the name of one scheme.
[Encryption and keys](../../encryption.md) explains them. This page is made from the docstrings of
the code.

| scheme | steps |
|---|---|
"""
ATTACK_NAMES = """# Attacks

These are the names for `--attack RUN --only NAMES`. [Audit a run](../../tutorials/audit-a-run.md)
shows how they are used, and [Attacks on your own run](../../attacks.md) has their limits and
figures. This page is made from the docstrings of the code.
"""
OPTIMISERS = """# Optimisers and predictors

This page is made from the docstrings of the code.

## Optimisers

These are the names for `training.optimizer`.

| name | what it is |
|---|---|
"""
PREDICTOR_NAMES = """## Predictors

These are the names for `evaluation.predictor`.
"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing that a user can choose.

    Attributes:
        name: The name that the user writes.
        summary: A sentence for the table at the top of the page.
        text: Further text in Markdown.
        file: The path of its file in the repository.
        cells: Further cells of its row in the table.
    """

    name: str
    summary: str
    text: str
    file: str
    cells: tuple[str, ...] = ()


def pages() -> dict[str, str]:
    """Returns the text of each page, by its place in the site."""
    made = {
        "strategies": _strategies(),
        "methods": _methods(),
        "codecs": _codecs(),
        "encryption": _encryption(),
        "attacks": _attacks(),
        "optimisers-and-predictors": _optimisers() + "\n" + _predictors(),
    }
    return {f"{FOLDER}{name}.md": text for name, text in made.items()}


def shelf(introduction: str, columns: Sequence[str], entries: Sequence[Entry]) -> str:
    """Returns a page: an introduction, a table of all entries, and a section about each.

    Args:
        introduction: The heading and the sentences at the top of the page.
        columns: The names of the columns after name and summary.
        entries: The entries in the order of the page.
    """
    rows = [
        " | ".join(
            ["", f"[`{e.name}`](#{_anchor(e.name)})", escaped(e.summary), *e.cells, ""]
        ).strip()
        for e in entries
    ]
    head = ["| " + " | ".join(["name", "what it does", *columns]) + " |"]
    rule = ["|" + "---|" * (2 + len(columns))]
    sections = [part for entry in entries for part in _section(entry)]
    return "\n".join([introduction, *head, *rule, *rows, "", *sections])


def _section(entry: Entry) -> Iterator[str]:
    """Yields the lines of the section about an entry."""
    yield from (f"### `{entry.name}`", "", escaped(entry.summary), "", entry.text, "")
    yield from (f"Source: [`{entry.file}`]({UP}{entry.file})", "")


def _anchor(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum() or letter in "_-")


def _of_module(kind: Any) -> tuple[str, str, str]:
    """Returns the summary, the further text and the path of the file that defines an object."""
    module = sys.modules[kind.__module__] if not inspect.ismodule(kind) else kind
    summary, _, text = inspect.cleandoc(module.__doc__ or "").partition("\n")
    return summary, text.strip("\n"), module.__name__.replace(".", "/") + ".py"


def parameters(kind: type[Any]) -> str:
    """Returns a table with the hyper-parameters of a dataclass; a sentence if it has none.

    Args:
        kind: A dataclass. A field made by `fl_vitlora.config.setting` has an explanation.
    """
    rows = [
        f"| `{item.name}` | {_default(item)} | {_range(item.metadata.get('interval'))} | "
        f"{escaped(str(item.metadata.get('explanation', '')) or _told(kind, item.name))} |"
        for item in dataclasses.fields(kind)
        if item.init
    ]
    head = "| parameter | default | range | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else "It has no parameters."


def _default(item: dataclasses.Field[Any]) -> str:
    if item.default is dataclasses.MISSING:
        return "no value"
    return "no value" if item.default is None else f"`{plain(item.default)}`"


def _range(interval: str | None) -> str:
    return f"`{interval}`" if interval else ""


def _told(kind: type[Any], name: str) -> str:
    """Returns what the docstrings of a class and its bases say about an attribute."""
    for base in kind.__mro__:
        lines = inspect.cleandoc(vars(base).get("__doc__") or "").splitlines()
        starts = [n for n, line in enumerate(lines) if line.startswith(f"    {name}: ")]
        if starts:
            first, *rest = lines[starts[0] :]
            more = [line.strip() for line in _until_next(rest)]
            return " ".join([first.partition(": ")[2], *more])
    return ""


def _until_next(lines: Sequence[str]) -> Iterator[str]:
    """Yields the lines that continue the explanation of an attribute."""
    for line in lines:
        if not line.startswith(" " * 8):
            return
        yield line


def _strategies() -> str:
    entries = []
    for name in strategies.available():
        kind = type(strategies.load(name, {}))
        summary, text, file = _of_module(kind)
        cells: tuple[str, ...] = ("", "", "")  # of a strategy that derives from Flower's class
        if issubclass(kind, Strategy):
            text = f"{text}\n\n{parameters(kind)}"
            traits = (kind.low_rank, kind.any_rank, kind.sums_suffice)
            cells = tuple("yes" if trait else "no" for trait in traits)
        entries.append(Entry(name=name, summary=summary, text=text, file=file, cells=cells))
    return shelf(STRATEGIES, ["needs LoRA", "ranks", "secure sums"], entries)


def _methods() -> str:
    entries = []
    for name in PARTS:
        kind = part_class(name)
        summary, text, file = _of_module(kind)
        text = f"{text}\n\n{parameters(kind)}"
        merges = f"no: {escaped(kind.cannot_merge)}" if kind.cannot_merge else "yes"
        cells = (merges, "yes" if kind.stackable else "no")
        entries.append(Entry(name=name, summary=summary, text=text, file=file, cells=cells))
    return shelf(METHODS, ["merges", "shared batch"], entries)


def _codecs() -> str:
    entries = []
    for name, kind in CODECS.items():
        _, text, file = _of_module(kind)
        summary, rows = _summary(kind), _arguments(kind)
        text = f"{text}\n\n{rows}\n\nExample: `{kind.example}`"
        cells = ("yes" if kind.lossless else "no",)
        entries.append(Entry(name=name, summary=summary, text=text, file=file, cells=cells))
    return shelf(CODEC_NAMES, ["lossless"], entries)


def _arguments(kind: type[Codec]) -> str:
    """Returns a table with the arguments of a codec."""
    defaults = {item.name: item for item in dataclasses.fields(kind)}
    rows = [
        f"| `{name}` | {_default(defaults[name])} | {argument} | {escaped(_told(kind, name))} |"
        for name, argument in kind.arguments().items()
    ]
    head = "| argument | default | values | meaning |\n|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else "It has no arguments."


def _summary(kind: Any) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _encryption() -> str:
    entries = []
    for name, step in STEPS.items():
        summary, text, file = _of_module(step)
        entries.append(Entry(name=name, summary=summary, text=text, file=file))
    schemes = [
        f"| `{name}` | {', '.join(f'`{step}`' for step in steps)} |"
        for name, steps in SCHEMES.items()
    ]
    return shelf(ENCRYPTION + "\n".join(schemes) + "\n", [], entries)


def _attacks() -> str:
    entries = []
    for name in ATTACKS:
        kind = type(attack_of(name, images=8))
        summary, text, file = _of_module(kind)
        figures = "\n".join(f"* {escaped(figure)}" for figure in kind.figures)
        text = f"What it looks for: {escaped(kind.goal)}\n\n{text}\n\nFigures:\n\n{figures}"
        by = ", ".join(view.adversary for view in kind.adversaries)
        cells = (by, "yes" if name in ON_REQUEST else "")
        entries.append(Entry(name=name, summary=summary, text=text, file=file, cells=cells))
    return shelf(ATTACK_NAMES, ["by", "only if it is named"], entries)


def _optimisers() -> str:
    rows = [f"| `{name}` | {escaped(optimizer_of(name).told)} |" for name in OPTIMIZERS]
    return OPTIMISERS + "\n".join(rows) + "\n"


def _predictors() -> str:
    entries = []
    for name in PREDICTORS:
        kind = type(predictor_of(name))
        _, text, file = _of_module(kind)
        own = "" if name == "plain" else text
        entries.append(Entry(name=name, summary=_summary(kind), text=own, file=file))
    return shelf(PREDICTOR_NAMES, [], entries)
