"""Pages about all settings, one for each group, from the explanations in the code.

The same explanations make `--help-all`. A setting that is added to `config/schema.py` gets its
place here without any further work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fl_vitlora import config
from fl_vitlora.command_line.flags import FLAGS
from fl_vitlora.command_line.help_pages import WHOLE, intervals, plain, titles
from fl_vitlora.config import settings

FOLDER = "reference/settings/"
EXPERIMENT = "experiment"  # the page about settings that belong to no group
INTRODUCTION = """# Settings

Each page has one group of settings. The pages are made from `fl_vitlora/config/schema.py`, as
`python simulate.py --help-all` is.

There are three ways to give a value to a setting: a YAML file (`--config FILE`), a flag if the
setting has one, and `--set PATH=VALUE` for every setting. [Running experiments](../../running.md)
says which of them wins.

```
python simulate.py --rounds 30 --set training.epochs=2 --set 'finetuning.targets=[q,k,v]'
```

In a range, a round bracket excludes the bound, and a square bracket includes it: `(0, 1]` means
more than 0 and at most 1.

| group | settings | what the group says |
|---|--:|---|
"""
SPECIAL = re.compile(r"([\\*_<>\[\]|#])")
PAGE = re.compile(r"\bdocs/(\w+)\.md")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting as its page shows it.

    Attributes:
        path: The dotted path.
        default: The default, in the form of ``--set PATH=VALUE``; empty if there is none.
        explanation: The sentences of the help.
        interval: The range; empty if the setting has none.
        flag: The flag that sets the setting; empty if there is none.
    """

    path: str
    default: str
    explanation: str
    interval: str
    flag: str


def groups() -> dict[str, list[Setting]]:
    """Returns the settings of each group; the settings outside of groups are in `EXPERIMENT`.

    Example:
        >>> [setting.path for setting in groups()["link"]][0]
        'link.uplink_mbps'
    """
    ranges, found = dict(intervals(config.Config)), {EXPERIMENT: list[Setting]()}
    flags = {entry.path: f"{flag} {entry.value}".strip() for flag, entry in FLAGS.items()}
    for path, default, explanation in settings.explanations(config.Config):
        group = path.partition(".")[0] if "." in path else EXPERIMENT
        setting = Setting(
            path=path,
            default=_default(default),
            explanation=explanation,
            interval=ranges.get(path, ""),
            flag=flags.get(path, ""),
        )
        found.setdefault(group, []).append(setting)
    return found


def _default(value: Any) -> str:
    return "" if value is None else plain(value)


def explained(group: str) -> str:
    """Returns the sentence that says what a group of settings is about.

    Example:
        >>> explained("model")
        'The backbone and its weights.'
    """
    return WHOLE if group == EXPERIMENT else dict(titles(config.Config))[group]


def navigation() -> list[dict[str, str]]:
    """Returns the entries of the navigation, in the order of the configuration."""
    return [{group: f"{FOLDER}{group}.md"} for group in groups()]


def pages() -> dict[str, str]:
    """Returns the text of each page, by its place in the site."""
    rows = [
        f"| [`{group}`]({group}.md) | {len(found)} | {explained(group)} |"
        for group, found in groups().items()
    ]
    index = {f"{FOLDER}index.md": INTRODUCTION + "\n".join(rows) + "\n"}
    return index | {f"{FOLDER}{group}.md": _page(group, found) for group, found in groups().items()}


def _page(group: str, found: list[Setting]) -> str:
    sections = ["\n".join(_section(setting)) for setting in found]
    return f"# Settings: `{group}`\n\n{explained(group)}\n\n" + "\n".join(sections)


def _section(setting: Setting) -> Iterator[str]:
    """Yields the lines about one setting."""
    yield from (f"## `{setting.path}`", "", linked(escaped(setting.explanation)), "")
    yield f"* Default: `{setting.default}`" if setting.default else "* Default: no value"
    if setting.interval:
        yield f"* Range: `{setting.interval}`"
    if setting.flag:
        yield f"* Flag: `{setting.flag}`"
    yield ""


def escaped(text: str) -> str:
    r"""Returns a text in which no character has a meaning in Markdown; code stays as it is.

    Example:
        >>> escaped("a_b [c] `d_e`")
        'a\\_b \\[c\\] `d_e`'
    """
    parts = text.split("`")
    return "`".join(SPECIAL.sub(r"\\\1", p) if not n % 2 else p for n, p in enumerate(parts))


def linked(text: str) -> str:
    """Returns a text in which names of pages are links, seen from a page about settings.

    Example:
        >>> linked("docs/encryption.md explains them")
        '[docs/encryption.md](../../encryption.md) explains them'
    """
    return PAGE.sub(r"[docs/\1.md](../../\1.md)", text)
