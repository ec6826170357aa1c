"""Generates mistakes on the command line and in configurations, from the program's own surface.

Flags come from its parser, settings with their types and ranges from the dataclasses, strategies
from their folder: what is added there is mistaken here.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import strategies
from fl_vitlora import config
from fl_vitlora.command_line.parser import make_parser
from fl_vitlora.communication.codecs import CODECS
from fl_vitlora.config import Config, grid, units, yaml_text
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
FILE = "given.yaml"


@dataclass(frozen=True)
class Mistake:
    """What somebody typed.

    Attributes:
        argv: The command line.
        told: One of these stands in the answer.
        file: What stands in `FILE`, if the command line names that.
    """

    argv: tuple[str, ...]
    told: tuple[str, ...]
    file: bytes | None = None


# Texts that are meant to be others.


@st.composite
def typo(draw: st.DrawFn, word: str) -> str:
    """Drops, doubles, swaps or replaces one character."""
    at = draw(st.integers(0, len(word) - 1))
    before, this, after = word[:at], word[at], word[at + 1 :]
    edits = [before + after, before + 2 * this + after, f"{before}{draw(LETTERS)}{after}"]
    if after:
        edits.append(f"{before}{after[0]}{this}{after[1:]}")
    return draw(st.sampled_from(edits))


LETTERS = st.sampled_from("abcdefghijklmnopqrstuvwxyz_0")


def misspelt(words: list[str]) -> SearchStrategy[str]:
    return st.sampled_from(words).flatmap(typo).filter(lambda word: word and word not in words)


# Values that are none, by type and range.

ANYTHING: SearchStrategy[Any] = st.sampled_from(
    [True, 3, -2.5, "some text", [1, 2], [[]], {"a": 1}, {}, None]
)


@dataclass(frozen=True)
class Setting:
    """A field of a dataclass, where it stands, and what its values may be."""

    path: str
    hint: Any
    interval: str | None


def settings_of(kind: type[Any], path: str = "") -> Iterator[Setting]:
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        hint, dotted = hints[item.name], f"{path}{item.name}"
        if dataclasses.is_dataclass(hint):
            yield from settings_of(typing.cast(type[Any], hint), f"{dotted}.")
        elif item.init and typing.get_origin(hint) is not Mapping:
            yield Setting(dotted, hint, item.metadata.get("interval"))


def is_none_of(*kinds: type[Any]) -> Callable[[Any], bool]:
    return lambda value: value is not None and type(value) not in kinds


def outside(interval: str | None) -> SearchStrategy[float]:
    """Numbers below and above a range, and the ends that it leaves out."""
    if interval is None:
        return st.nothing()
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    found = [st.floats(max_value=low, exclude_max=interval[0] == "[", allow_infinity=False)]
    found += [st.just(math.inf)] if interval.endswith("inf)") else []
    if high < math.inf:
        found.append(st.floats(min_value=high, exclude_min=interval[-1] == "]"))
    return st.one_of(found)


def whole_outside(interval: str | None) -> SearchStrategy[int]:
    if interval is None:
        return st.nothing()
    finite = outside(interval).filter(math.isfinite)
    return finite.map(math.floor).filter(lambda n: not lies_in(n, interval))


def lies_in(number: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = number >= low if interval[0] == "[" else number > low
    return above and (number <= high if interval[-1] == "]" else number < high)


def wrong(hint: Any, interval: str | None) -> SearchStrategy[Any]:
    """Values that a setting of this type and range cannot have."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if type(None) in arguments:
        return wrong(arguments[0], interval).filter(lambda value: value is not None)
    if origin is Literal:
        return misspelt(list(arguments)) | ANYTHING.filter(is_none_of(str))
    if origin is tuple:
        entry = wrong(arguments[0], interval).filter(lambda value: value not in (None, ""))
        return st.lists(entry, min_size=1, max_size=2) | st.sampled_from([-0.5, True, {"a": 1}])
    return WRONG[hint](interval)


TEXTS = st.text(max_size=9)
WRONG: Mapping[Any, Callable[[str | None], SearchStrategy[Any]]] = {
    int: lambda interval: st.one_of(
        ANYTHING.filter(lambda value: type(value) is not int),
        TEXTS,
        st.floats(),
        whole_outside(interval),
        st.integers(min_value=2**63) | st.just(10**400),
    ),
    float: lambda interval: st.one_of(
        ANYTHING.filter(is_none_of(int, float)),
        st.sampled_from([math.nan, "nan", 10**400, "one", "1,5", "0x1"]),
        outside(interval) | outside(interval).map(str),
    ),
    bool: lambda interval: ANYTHING.filter(is_none_of(bool)) | TEXTS,
    str: lambda interval: st.one_of(
        ANYTHING.filter(lambda value: type(value) is not str),
        st.sampled_from(["", "a\0b", "\ud800", "n" * 256, "n/" * 1001]),
    ),
    units.Bytes: lambda interval: st.one_of(
        st.integers(max_value=0),
        st.sampled_from([True, [5], {}, math.nan, math.inf, "9" * 400]),
        st.sampled_from(["MB", "5 XB", "1e3 MB", "-5MB", "0kB", "5 M B", "five", ""]),
    ),
}

SETTINGS = {setting.path: setting for setting in settings_of(Config)}


def as_yaml(value: Any) -> str:
    """Writes a value on one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, allow_unicode=False, width=10**6)
    return dumped.removesuffix("\n").removesuffix("\n...")


def in_file(path: str, value: Any) -> bytes:
    """Nests a value as a file does."""
    *groups, leaf = path.split(".")
    opening = "".join(f"{{{group}: " for group in groups)
    return f"{opening}{{{leaf}: {as_yaml(value)}}}{'}' * len(groups)}".encode()


@st.composite
def wrong_values(draw: st.DrawFn, setting: Setting) -> Mistake:
    """A wrong value, given by ``--set`` or in a file."""
    value = draw(wrong(setting.hint, setting.interval))
    told = (setting.path, f"--config {FILE}: ")
    if draw(st.booleans()):
        return Mistake(("--config", FILE), told, in_file(setting.path, value))
    return Mistake(("--set", f"{setting.path}={as_yaml(value)}"), told)


# Families of mistakes on the command line.

ACTIONS = {f: a for f, a in make_parser()._option_string_actions.items() if f[:2] == "--"}
FLAGS = sorted(ACTIONS)
TAKING = sorted(flag for flag, action in ACTIONS.items() if action.nargs != 0)


@st.composite
def unknown_flags(draw: st.DrawFn) -> Mistake:
    flag = f"--{draw(misspelt([flag[2:] for flag in FLAGS]))}"
    form = draw(st.sampled_from([(flag,), (flag, "3"), (f"{flag}=3",), ("--rounds", "2", flag)]))
    return Mistake(form, (flag,))


@st.composite
def flags_without_values(draw: st.DrawFn) -> Mistake:
    flag = draw(st.sampled_from(TAKING))
    return Mistake((flag, *draw(st.sampled_from([(), ("--verbose",), ("--out", "new")]))), (flag,))


ODD_WORDS = ["", " ", "\n", "\udcff", "x" * 9000, "\x1b[2J", "-"]


@st.composite
def stray_words(draw: st.DrawFn) -> Mistake:
    word = draw(st.text(max_size=20) | st.sampled_from(ODD_WORDS))
    assume(not word.startswith(("--", "-h")))
    return Mistake((word,), ("unrecognized arguments: ", "ignored explicit argument"))


@st.composite
def overrides_that_are_none(draw: st.DrawFn) -> Mistake:
    path = draw(st.sampled_from(sorted(SETTINGS)))
    loose = [path, f"={path}", f" ={path}", f"{path}.=1", f".{path}=1", f"{path}..x=1"]
    broken = [f"{path}={value}" for value in BROKEN]
    text = draw(st.sampled_from([*loose, *broken]))
    return Mistake(("--set", text), ("--set ",))


BROKEN = [  # is no YAML, or more than an experiment can hold
    "[1",
    "{",
    "'",
    "&a [*a]",
    "[" * 5000,
    "[" * 40 + "]" * 40,
    "!!python/object/apply:os.getcwd []",
    "!!int one",
    "!!bool perhaps",
    "!!timestamp soon",
    "2024-13-45",
    "0x_",
    "{a: 1, a: 2}",
    "{[a]: 1}",
    "*nowhere",
    "9" * 30,
    "1" * 6000,
    "a\0b",
    "%",
    "@",
]


@st.composite
def unknown_paths(draw: st.DrawFn) -> Mistake:
    path = draw(misspelt([path for path in SETTINGS if "strategy" not in path]))
    assume("" not in path.split("."))
    return Mistake(("--set", f"{path}=1"), (path, path.split(".")[0]))


@st.composite
def groups_that_are_values(draw: st.DrawFn) -> Mistake:
    groups = sorted({path.rpartition(".")[0] for path in SETTINGS} - {"", "strategy"})
    group = draw(st.sampled_from(groups))
    value = draw(st.sampled_from([None, True, 3, 0.5, [1], []]))
    if draw(st.booleans()):
        return Mistake(("--config", FILE), (group,), in_file(group, value))
    return Mistake(("--set", f"{group}={as_yaml(value)}"), (group,))


MULTIPLIED = "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 15))

NO_EXPERIMENTS = [
    b"- clients\n- 3\n",
    b"just a text",
    b"3",
    b".nan",
    b"2024-13-45",
    b"clients: 3\nclients: 4\n",
    b"clients: 3\n---\nclients: 4\n",
    b"clients: 3\0",
    b"\xff\xfe\x00\x01",
    b"\x7fELF\x02\x01\x01" + bytes(99),
    b"\x89PNG\r\n\x1a\n",
    "clients: 3".encode("utf-16"),
    "data: {name: J\u00fcrgen}".encode("latin-1"),
    b"data: {name: \xed\xa0\x80}",
    b"&all [*all]",
    b"&all {training: *all}",
    b"strategy: &all {name: fedavg, strategy: *all}",
    b"strategy: {name: fedavg, x: &all [*all]}",
    b"x: &list [1]\ny: {*list : 1, *list : 2}\n",
    f"a0: &a0 [x]\n{MULTIPLIED}".encode(),
    f"a0: &a0 [x]\n{MULTIPLIED}compare: {{clients: *a14}}".encode(),
    b"{a: " * 3000,
    b"{a: " * 60 + b"1" + b"}" * 60,
    b"strategy: " * 60 + b"fedavg",
    b"clients: !!python/object/apply:os.system [true]",
    b"!!python/name:os.system clients: 3",
    b"!unheard-of {clients: 3}",
    b"clients: !!int one",
    b"clients: 0x_",
    b"clients: " + b"9" * 5000,
    b"<<: 3",
    b"\tclients: 3",
    b"? [clients]\n: 3\n",
    b"1: 2",
    b"null: 2",
    b"2024-01-01: 2",
    b"training:\n",
    b"training: {1: 2}",
    b"compare: 3",
    b"compare: {clients: {}}",
    b"compare: {clients: &all [*all]}",
    b"compare: {where: {here: {1: 2}}}",
    b"compare: {where: {here: 3}}",
    b"compare: {where: {here: {seed: 3}}}",
    b"compare: {1: [2]}",
    b"compare: [[{clients: [3]}]]",
    b"compare: {clients: [3, 4]}\nbaseline: 5\n",
    b"compare: {clients: [3, 3]}",
    b"seeds: 3",
    b"seeds: []",
    b"seeds: [[0]]",
    b"seeds: {0: 1}",
    b"seeds: [0, 0]",
]
CONTENTS = ("compare", "seed", "setting", "baseline", "clients", "training")


@st.composite
def files_that_are_no_experiments(draw: st.DrawFn) -> Mistake:
    content = draw(st.sampled_from(NO_EXPERIMENTS))
    return Mistake(("--config", FILE), (FILE, *CONTENTS), content)


@st.composite
def damaged_files(draw: st.DrawFn) -> Mistake:
    """A committed experiment in which a few bytes are others."""
    whole = draw(st.sampled_from(sorted((ROOT / "configs").glob("*.yaml")))).read_bytes()
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(content) - 1))
        content[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=3))
    assume(is_refused(bytes(content)))
    return Mistake(("--config", FILE), ("",), bytes(content))


def is_refused(content: bytes) -> bool:
    """Asks the layer below the command line whether a file is a mistake."""
    path = Path(FILE)
    path.write_bytes(content)
    try:
        tree = yaml_text.read_yaml(FILE)
        _ = grid.read_grid(tree, {}) if grid.is_grid(tree) else config.resolve(tree, {})
    except UserError:
        return True
    finally:
        path.unlink()
    return False


@st.composite
def files_that_are_none(draw: st.DrawFn) -> Mistake:
    names = ["", ".", "used", "/dev/zero", "/dev/null/x", "no.yaml", "used/result.json/x", "a\0b"]
    name = draw(st.sampled_from([*names, "n" * 300, "n/" * 3000, "\udcff.yaml", "\n"]))
    return Mistake(("--config", name), ("--config",))


@st.composite
def comparisons(draw: st.DrawFn) -> Mistake:
    method = draw(misspelt([*METHODS]))
    path = draw(misspelt([path for path in SETTINGS if "strategy" not in path]))
    assume("," not in method)
    seed = draw(st.sampled_from(["one", "", "-1", "0.5", "[0]", "1e3", "9" * 30]))
    too_many = [f"{axis}={','.join(map(str, range(2, 200)))}" for axis in ("clients", "rounds")]
    ways: list[tuple[tuple[str, ...], str]] = [
        (("--compare", method), "method"),
        (("--compare", "head", f"{path}=1,2"), path.split(".")[0]),
        (("--compare", "head", f"clients={draw(st.sampled_from(BROKEN))}"), "--compare"),
        (("--compare", "head", "head"), "head"),
        (("--compare", "head", "--method", "lora"), "finetuning.method"),
        (("--compare", "seed=1,2"), "--seeds"),
        (("--compare", "out=a,b"), "out"),
        (("--compare", "clients=3,4", "--clients", "5"), "clients"),
        (("--compare", ""), "finetuning.method"),
        (("--compare", "clients="), "clients"),
        (("--compare", *too_many), "compare: "),
        (("--seeds", seed), "seed"),
        (("--seeds", "3", "4", "3"), "seeds"),
        (("--seeds", "3", "4", "--seed", "0"), "seed"),
    ]
    argv, told = draw(st.sampled_from(ways))
    return Mistake(argv, (told,))


# Families that ask for what there is not.

CONTRADICTIONS = {
    "--set encryption.scope=client --set encryption.adapt=true": "encryption.scope",
    "--set encryption.scope=image --set encryption.adapt=true": "encryption.adapt",
    "--set encryption.scope=image --set finetuning.patch_embedding=aligned": "patch_embedding",
    "--set encryption.scope=client --set evaluation.by=central": "evaluation.by",
    "--method losa --set encryption.scope=client": "method losa mixes tokens",
    "--method losa+patch_embed": "losa needs a frozen backbone",
    "--method lora+losa": "lora changes the outputs",
    "--set finetuning.patch_embedding=local --set evaluation.by=central": "evaluation.by",
    "--strategy flora --method head": "flora",
    "--strategy fedsa_lora --set evaluation.by=central": "evaluation.by",
    "--set attack.clients=3": "attack.clients",
    "--set attack.kinds=nan": "attack.kinds",
    "--set attack.kinds=nan --set attack.clients=20": "attack.clients",
    "--set finetuning.rank_shares=1": "finetuning.rank_shares",
    "--set finetuning.client_ranks=[1,2]": "finetuning.client_ranks",
    "--set finetuning.client_ranks=[1,2] --method head": "finetuning.client_ranks",
    "--set finetuning.client_ranks=[1,9] --set finetuning.rank_shares=[0.5,0.5]": "rank",
    "--set finetuning.client_ranks=[1,2] --set finetuning.rank_shares=[0.5,0.6]": "rank_shares",
    "--set finetuning.client_ranks=[1,2] --set finetuning.rank_shares=[0.5,0.5]": "client_ranks",
    "--set privacy.noise_multiplier=1": "privacy.noise_multiplier",
    "--set privacy.secure_aggregation=true --strategy median": "privacy.secure_aggregation",
    "--set privacy.secure_aggregation=true --clients 2": "privacy.secure_aggregation",
    "--set privacy.secure_aggregation=true --set compression.uplink=int8": "secure_aggregation",
    "--set privacy.clipping_norm=1 --strategy krum": "privacy.clipping_norm",
    "--strategy krum --set strategy.f=10": "krum",
    "--set encryption.steps=[LE,EtC]": "encryption.steps",
    "--set encryption.steps=[pixel_shuffling,pixel_shuffling]": "encryption.steps",
    "--set finetuning.targets=[]": "finetuning.targets",
    "--set model.image_size=[8,8,8]": "model.image_size",
    "--set clients=3 --set clients.x=4": "clients",
    "--ray-address 127.0.0.1:6379": "engine.ray_address",
    "--ray-address 127.0.0.1:99999 --workers 2": "engine.ray_address",
}


@st.composite
def contradictions(draw: st.DrawFn) -> Mistake:
    typed = draw(st.sampled_from(sorted(CONTRADICTIONS)))
    return Mistake(tuple(typed.split()), (CONTRADICTIONS[typed],))


@functools.cache
def own_settings() -> list[tuple[str, Setting]]:
    """Lists the parameters of every strategy in the folder."""
    kinds = {name: type(strategies.load(name, {})) for name in strategies.available()}
    return [(n, setting) for n, kind in kinds.items() for setting in settings_of(kind, "strategy.")]


@st.composite
def unknown_strategies(draw: st.DrawFn) -> Mistake:
    flag = draw(st.sampled_from(["--strategy", "--check-strategy"]))
    name = draw(misspelt(strategies.available()) | st.sampled_from(NO_STRATEGIES))
    return Mistake((flag, name), (repr(name), name.partition(":")[2] or name, "strategy"))


NO_STRATEGIES = [
    "",
    "FedAvg",
    ":",
    ":FedAvg",
    "fedavg:",
    "os:path",
    "os:PathLike",
    "..:X",
    "no.such.module:X",
    "fl_vitlora.strategy:Strategy",
    "flwr.serverapp.strategy:FedAvgg",
    "flwr.serverapp.strategy:Strategy",
    "strategies/",
    "__init__",
    "a b",
    "a\0b:X",
]


@st.composite
def strategy_options(draw: st.DrawFn) -> Mistake:
    flag = draw(st.sampled_from(["--strategy", "--check-strategy"]))
    name, setting = draw(st.sampled_from(own_settings()))
    if draw(st.booleans()):
        value = draw(wrong(setting.hint, setting.interval))
        return Mistake((flag, name, "--set", f"{setting.path}={as_yaml(value)}"), (setting.path,))
    known = [other.path for owner, other in own_settings() if owner == name]
    prefix = "strategy."
    option = draw(typo(setting.path.removeprefix(prefix)))
    assume(option and f"{prefix}{option}" not in known and option not in ("name", "options"))
    return Mistake((flag, name, "--set", f"{prefix}{option}=1"), (option,))


FLOWERS = {
    "FedAvg": ["nonsense=1", "fraction_train=two", "fraction_train=nan", "min_train_nodes=99"],
    "FedAdam": ["eta=[1]", "eta=.nan", "train_metrics_aggr_fn=3", "weighted_by_key=7"],
    "DifferentialPrivacyServerSideFixedClipping": ["clipping_norm=1", "strategy=3"],
    "Krum": ["num_malicious_nodes=x"],
}


@st.composite
def options_of_flower(draw: st.DrawFn) -> Mistake:
    name = draw(st.sampled_from(sorted(FLOWERS)))
    option = draw(st.sampled_from(FLOWERS[name]))
    argv = ("--strategy", f"flwr.serverapp.strategy:{name}", "--set", f"strategy.{option}")
    return Mistake(argv, (f"strategy.{option.partition('=')[0]}", "'nonsense'", "noise_multiplier"))


@st.composite
def unknown_codecs(draw: st.DrawFn) -> Mistake:
    lanes = [path for path in SETTINGS if path.startswith("compression.") and "back" not in path]
    path = draw(st.sampled_from(lanes))
    spec = draw(misspelt([*CODECS]) | st.sampled_from(NO_CODECS))
    return Mistake(("--set", f"{path}={as_yaml(spec)}"), (path,))


NO_CODECS = [
    "int4(",
    "int4()()",
    "int4(block=0)",
    "int4(1e9)",
    "topk",
    "topk(0)",
    "topk(2)",
    "topk(nan)",
    "lowrank(-1)",
    "int4+topk(0.1)",
    "every(0)+int4",
    "every(-1)",
    "every(5)+",
    "int4+every(5)",
    "+",
    "topk(0.1)+" * 30 + "int4",
    "int4 int8",
]


@st.composite
def out_folders(draw: st.DrawFn) -> Mistake:
    names = ["used", ".", "/", "used/result.json", "/dev/null", "/dev/null/x", "used/result.json/x"]
    name = draw(st.sampled_from([*names, "", "a\0b", "\udcff", "n" * 300, "n/" * 2000]))
    seeds = draw(st.sampled_from([(), ("--seeds", "0", "1")]))
    return Mistake(("--out", name, *seeds), ("out", "grid folder", name or "out"))


@st.composite
def misused_flags(draw: st.DrawFn) -> Mistake:
    other = draw(st.sampled_from(["--compare head", "--seeds 0 1", "--rotate-key used"]))
    checked = draw(st.sampled_from(["", "fedavg", "nothing"]))
    place = draw(st.sampled_from(["used", "", "nowhere", "/dev/null", "/dev/zero", "n" * 300]))
    twice = draw(st.sampled_from([("--strategy", "fedavg"), ("--set", "strategy={name: krum}")]))
    ways = [
        Mistake(("--check-strategy", checked, *other.split()), ("--check-strategy",)),
        Mistake(("--check-strategy", "fedavg", *twice), ("--check-strategy",)),
        Mistake(("--check-strategy", "flwr.server.strategy:FedAvg"), ("older",)),
        Mistake(("--rotate-key", place), (place[:20] or ".", "shard")),
        Mistake(("--rotate-key", place, "--seeds", "0", "1"), ("--rotate-key",)),
        Mistake(("--rotate-key", "used", "--config", "nowhere.yaml"), ("nowhere.yaml",)),
    ]
    return draw(st.sampled_from(ways))


FAMILIES: Mapping[str, SearchStrategy[Mistake]] = {
    "unknown flags": unknown_flags(),
    "flags without values": flags_without_values(),
    "stray words": stray_words(),
    "overrides that are none": overrides_that_are_none(),
    "unknown paths": unknown_paths(),
    "groups that are values": groups_that_are_values(),
    "files that are no experiments": files_that_are_no_experiments(),
    "damaged files": damaged_files(),
    "files that are none": files_that_are_none(),
    "comparisons": comparisons(),
    "contradictions": contradictions(),
    "unknown strategies": unknown_strategies(),
    "strategy options": strategy_options(),
    "options of Flower": options_of_flower(),
    "unknown codecs": unknown_codecs(),
    "out folders": out_folders(),
    "misused flags": misused_flags(),
}
ANY = st.one_of(*FAMILIES.values(), st.sampled_from([*SETTINGS.values()]).flatmap(wrong_values))


@st.composite
def unknown_sources(draw: st.DrawFn) -> Mistake:
    """Is looked for only beside the preparations of a run, when Ray is started already."""
    model = draw(misspelt(["vit_letters_16", "vit_tiny_patch16_224"]))
    data = draw(st.sampled_from(["used", "used/result.json", "no/such/place", "./nothing", "a\nb"]))
    weights = draw(st.sampled_from(["used", "nowhere.pt", "/dev/zero", "used/result.json"]))
    ways = [
        Mistake(("--model", model), (model,)),
        Mistake(("--dataset", data), (data, repr(data))),
        Mistake(("--set", f"model.weights={weights}"), (weights,)),
        Mistake(("--set", "model.patch_size=3"), ("patch_size",)),
        Mistake(("--set", "encryption.block_size=5"), ("block",)),
        Mistake(("--set", "encryption.fixed_blocks=999"), ("encryption.fixed_blocks",)),
        Mistake(("--set", "finetuning.rank=9999"), ("finetuning.rank",)),
        Mistake(("--clients", "3000"), ("3000",)),
        Mistake(("--set", "data.limit=1"), ("20 clients",)),
    ]
    return draw(st.sampled_from(ways))
