"""Writes the two pages of help: the common flags on one screen, and all flags and settings."""

from __future__ import annotations

import dataclasses
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fl_vitlora import config
from fl_vitlora.command_line.flags import COMMON, FLAGS, OTHER_FLAGS
from fl_vitlora.config import settings

WHOLE = "The experiment as a whole."
FLAG_COLUMN = 24  # width of the flags on the first page
FOLDED = 74  # width of a wrapped text on the second page
SCREEN = 80  # width of the first page
WHOLE_WORDS: Mapping[str, Any] = {"break_long_words": False, "break_on_hyphens": False}

FIRST_LINES = """\
usage: simulate.py [FLAG VALUE ...]

Trains a vision transformer on encrypted images with many clients, all of them
simulated on this machine. The default of each setting stands in brackets.
"""

FIRST_EXAMPLES = """
examples:
  python simulate.py --clients 20
      the main job: encrypted digits, about half a minute on two cores
  python simulate.py --strategy fedprox --set strategy.mu=0.1 --seed 1
      another strategy and its parameter

--help-all explains every flag and every setting, with more examples.
"""

EXAMPLES = """examples:
  python simulate.py --clients 20
      the main job: 20 clients, encrypted digits, LoRA + patch embedding
  python simulate.py --method full --seed 1
      the same with full fine-tuning, for comparison
  python simulate.py --set 'encryption.steps=[]'
      the same on plain images
  python simulate.py --strategy fedprox --set strategy.mu=0.1
      another strategy and its parameter
  python simulate.py --strategy flwr.serverapp.strategy:FedAdam \\
    --set strategy.eta=0.01
      any strategy of Flower, unmodified
  python simulate.py --config configs/thousand_fold.yaml
      a thousandth of the bytes: compressed tensors in both directions
  python simulate.py --set compression.uplink=int4 --budget 5MB \\
    --target-accuracy 0.9
      other codecs, a limit on bytes, and the bytes until 90 % accuracy
  python simulate.py --check-strategy my_idea --set strategy.rate=0.5
      test strategies/my_idea.py against the contract, rule by rule, in seconds
  python simulate.py --config configs/cifar10_vit_base.yaml
      ViT-B/16 on CIFAR-10, for a machine with a GPU

  python simulate.py --resume runs/NAME
      continue an interrupted run, to the same bits

  python simulate.py --rotate-key runs/NAME/shards
      for the data owner: draw a new secret and encrypt all shards under it

  python simulate.py --storage-keys runs/NAME/shards --out keys/storage
      for the data owner: write a key for each deployed node, which opens the
      node's shard file

comparisons:
  python simulate.py --compare head lora lora+patch_embed full --seeds 0-4
      four methods with five seeds each: a table, plots and all runs in a folder
  python simulate.py --compare head lora \\
    'encryption.steps=[],[pixel_shuffling],EtC'
      every combination of two methods and three encryptions
  python simulate.py --config configs/grids/default_job.yaml \\
    --out runs/default_job
      a comparison from a file; the same command again continues it
"""

SETTINGS = """\
settings with their defaults, for --set PATH=VALUE and for YAML files
("Range: (0, 1]" means more than 0 and at most 1; "Flag" sets the same):"""


def one_screen() -> str:
    """Returns the help that fits one screen: the common flags and two examples."""
    entries = FLAGS | OTHER_FLAGS
    lines = [FIRST_LINES]
    for flag in COMMON:
        text = textwrap.wrap(entries[flag].explanation, SCREEN - FLAG_COLUMN - 1)
        names = [f"  {flag} {entries[flag].value}", *[""] * (len(text) - 1)]
        lines += [f"{name:<{FLAG_COLUMN}} {part}" for name, part in zip(names, text, strict=True)]
    return "\n".join(lines) + "\n" + FIRST_EXAMPLES


def every_setting() -> str:
    """Returns the help with every flag, every setting and many examples."""
    lines = [FIRST_LINES, *_explained_flags(), SETTINGS, *_explained_settings()]
    return "\n".join(lines) + "\n\n" + EXAMPLES


def _explained_flags() -> Iterator[str]:
    """Yields the lines about the flags that do not stand for one setting, and a blank line."""
    yield from ("  --help", "      Show the common flags on one screen.")
    yield from ("  --help-all", "      Show every flag and every setting.")
    yield from ("  --version", "      Show the version of this program.")
    for flag, entry in OTHER_FLAGS.items():
        yield f"  {flag} {entry.value}".rstrip()
        yield from _folded(f"{entry.explanation}. {entry.more}".strip())
    yield ""


def _explained_settings() -> Iterator[str]:
    """Yields the lines about all settings, grouped by the section of the configuration."""
    ranges, flags = dict(intervals(config.Config)), {e.path: flag for flag, e in FLAGS.items()}
    titles, group = {"": WHOLE, **dict(_titles(config.Config))}, None
    for path, default, explanation in settings.explanations(config.Config):
        found = path.rpartition(".")[0]
        if found in titles and found != group:
            group = found
            yield from ("", *textwrap.wrap(f"{group}: {titles[group]}".strip(": "), FOLDED))
        yield f"  {path}" + ("" if default in (None, "") else f" = {plain(default)}")
        known = {"Range": ranges.get(path), "Flag": flags.get(path)}
        yield from _folded(" ".join([explanation, *(f"{k}: {v}." for k, v in known.items() if v)]))


def _folded(text: str) -> Iterable[str]:
    """Returns a text as indented lines of limited width."""
    return (f"      {line}" for line in textwrap.wrap(text, FOLDED, **WHOLE_WORDS))


def plain(value: Any) -> str:
    """Returns a default value in the form in which a user writes it in ``--set PATH=VALUE``."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def intervals(kind: type[Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the pair (dotted path, range) of every setting that has a range.

    Args:
        kind: A dataclass of settings.
        path: The dotted path of the dataclass, with a dot at its end; empty for the root.

    Example:
        >>> dict(intervals(config.Config))["training.epochs"]
        '[1, inf)'
    """
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from intervals(hints[item.name], f"{path}{item.name}.")
        elif interval := item.metadata.get("interval"):
            yield f"{path}{item.name}", interval


def _titles(kind: type[Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the pair (dotted path, first line of the docstring) of every group of settings."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield f"{path}{item.name}", str(hint.__doc__).partition("\n")[0]
            yield from _titles(typing.cast(type[Any], hint), f"{path}{item.name}.")
