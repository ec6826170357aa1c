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
simulated on this machine. The default value of each flag is in brackets.
"""

FIRST_EXAMPLES = """
examples:
  python simulate.py --clients 20
      run the default job: encrypted digits, about 30 seconds on two cores
  python simulate.py --strategy fedprox --set strategy.mu=0.1 --seed 1
      use another strategy, and set its parameter mu

--help-all explains every flag and every setting, with more examples.
"""

EXAMPLES = """examples:
  python simulate.py --clients 20
      run the default job: 20 clients, encrypted digits, LoRA + patch embedding
  python simulate.py --method full --seed 1
      run the default job with full fine-tuning and another seed
  python simulate.py --set 'encryption.steps=[]'
      run the default job on plain images
  python simulate.py --strategy fedprox --set strategy.mu=0.1
      use another strategy, and set its parameter mu
  python simulate.py --strategy flwr.serverapp.strategy:FedAdam \\
    --set strategy.eta=0.01
      use a strategy of Flower, and set its parameter eta
  python simulate.py --config configs/thousand_fold.yaml
      compress all tensors in both directions: 616 times fewer bytes
  python simulate.py --set compression.uplink=int4 --budget 5MB \\
    --target-accuracy 0.9
      compress with int4, send at most 5 MB, and report the bytes until an
      accuracy of 90 %
  python simulate.py --check-strategy my_idea --set strategy.rate=0.5
      test the file strategies/my_idea.py against the rules for strategies
  python simulate.py --config configs/cifar10_vit_base.yaml
      train ViT-B/16 on CIFAR-10; this needs a machine with a GPU

  python simulate.py --resume runs/NAME
      continue an interrupted run

  python simulate.py --attack runs/NAME --only label_counts,second_order
      audit a finished run by two attacks
  python simulate.py --attack runs/NAME --fail-if 'verdict>=partly' \\
    --fail-if 'membership_loss.area under the curve>60'
      audit the run, and end with exit code 1 if one of the two bounds is true

  python simulate.py --rotate-key runs/NAME/shards
      for the data owner: draw a new secret and encrypt all shards with it

  python simulate.py --storage-keys runs/NAME/shards --out keys/storage
      for the data owner: write for each deployed node the key that opens the
      node's shard file

comparisons:
  python simulate.py --compare head lora lora+patch_embed full --seeds 0-4
      run four methods with five seeds each; the folder gets a table and plots
  python simulate.py --compare head lora \\
    'encryption.steps=[],[pixel_shuffling],EtC'
      run every combination of two methods and three encryption schemes
  python simulate.py --config configs/grids/default_job.yaml \\
    --out runs/default_job
      run a comparison from a file; if it was interrupted, the same command
      continues it
"""

SETTINGS = """\
settings with their defaults, for --set PATH=VALUE and for YAML files
("Range: (0, 1]" means more than 0 and at most 1;
"Flag" names the option that sets the same setting):"""


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
    """Yields the lines about `--help`, `--version` and `OTHER_FLAGS`, and a blank line."""
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
    sentences, group = {"": WHOLE, **dict(titles(config.Config))}, None
    for path, default, explanation in settings.explanations(config.Config):
        found = path.rpartition(".")[0]
        if found in sentences and found != group:
            group = found
            yield from ("", *textwrap.wrap(f"{group}: {sentences[group]}".strip(": "), FOLDED))
        yield f"  {path}" + ("" if default in (None, "") else f" = {plain(default)}")
        known = {"Range": ranges.get(path), "Flag": flags.get(path)}
        yield from _folded(" ".join([explanation, *(f"{k}: {v}." for k, v in known.items() if v)]))


def _folded(text: str) -> Iterable[str]:
    """Returns the lines of a text: indented, and wrapped at `FOLDED` characters."""
    return (f"      {line}" for line in textwrap.wrap(text, FOLDED, **WHOLE_WORDS))


def plain(value: Any) -> str:
    """Returns a default value in the form in which a user writes it in ``--set PATH=VALUE``."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def intervals(kind: type[Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields a pair (dotted path, range) for every setting that has a range.

    Args:
        kind: A dataclass whose fields are settings, or dataclasses of settings.
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


def titles(kind: type[Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields a pair for every group of settings: its dotted path, and its docstring's first line.

    A group is a field whose type is a dataclass, for example `training`.
    """
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            yield f"{path}{item.name}", str(hint.__doc__).partition("\n")[0]
            yield from titles(typing.cast(type[Any], hint), f"{path}{item.name}.")
