"""What an experiment is: frozen dataclasses, read from YAML and from `--set a.b=c`.

The dataclasses are plain values without behaviour; every field carries its explanation in its
metadata, from which `--help` is made. Reading is one generic function: it walks a mapping along
the annotations of a dataclass and names path, value, expectation and the nearest key when
something does not fit.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from fl_vitlora.errors import MOST_SHOWN, UserError, shown, unknown
from fl_vitlora.units import parse_bytes

T = TypeVar("T")

CipherStep = Literal[
    "block_scrambling",
    "pixel_shuffling",
    "negative_positive",
    "colour_shuffling",
    "rotation_inversion",
    "block_negative_positive",
    "nibble_shuffling",
    "block_nibble_shuffling",
    "pixel_negative_positive",
    "pixel_colour_shuffling",
]
# Schemes of the literature that can be named instead of their steps.
SCHEMES: Mapping[str, tuple[CipherStep, ...]] = {
    "ViT-blockwise": ("block_scrambling", "pixel_shuffling", "negative_positive"),
    "EtC": (
        "block_scrambling",
        "rotation_inversion",
        "block_negative_positive",
        "colour_shuffling",
    ),
    "LE": ("nibble_shuffling",),
    "ELE": ("block_nibble_shuffling", "block_scrambling"),
    "PE": ("pixel_negative_positive", "pixel_colour_shuffling"),
}

# More than any experiment says, less than a program chokes on.
DEEPEST, MOST_VALUES = 20, 100_000  # in a YAML text
LONGEST_NUMBER = 63  # bits
LONGEST_TEXT, LONGEST_NAME = 2000, 255  # bytes of a setting, and between the slashes of a path

# Groups of settings that may be given by one text, and which of them that is.
SHORT: Mapping[str, str] = {"strategy": "name", "uplink": "codec", "downlink": "codec"}

Bytes = typing.NewType("Bytes", int)
Adapted = Literal["q", "k", "v", "proj", "fc1", "fc2"]
Attack = Literal["sign_flip", "scale", "nan"]
Fault = Literal["raise", "crash", "slow"]


def setting(default: Any, explanation: str, interval: str | None = None) -> Any:
    """A dataclass field with its explanation for `--help` and its range, such as "(0, 1]"."""
    return field(default=default, metadata={"explanation": explanation, "interval": interval})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and who holds which of them."""

    name: str = setting("digits", "'digits' (bundled), a Hugging Face data set, or a local path")
    image_column: str | None = setting(None, "column of the images; found by its type if not given")
    label_column: str | None = setting(None, "column of the labels; found by its type if not given")
    partition: Literal["dirichlet", "iid", "pathological", "shard"] = setting(
        "dirichlet", "how labels are spread over the clients"
    )
    alpha: float = setting(
        0.5, "concentration of the Dirichlet partition; small is uneven", "(0, inf)"
    )
    classes_per_client: int = setting(
        2, "labels a client holds in the pathological partition", "[1, inf)"
    )
    shards_per_client: int = setting(
        2, "label-sorted shards a client holds in the shard partition", "[1, inf)"
    )
    min_samples: int = setting(2, "fewest images a client may hold", "[1, inf)")
    test_fraction: float = setting(
        0.2, "share held out for testing where the data has no test split", "(0, 1)"
    )
    limit: int | None = setting(None, "use only so many training and test images", "[1, inf)")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which backbone, with which weights."""

    name: str = setting(
        "vit_letters_16", "'vit_letters_16', 'vit_letters_16_plain' (bundled) or any timm ViT"
    )
    weights: str = setting("pretrained", "'pretrained' (bundled or hub), 'random', or a local file")
    image_size: tuple[int, ...] | None = setting(
        None, "pixels a side, or [height, width]; the model's own if not given", "[1, inf)"
    )
    patch_size: int | None = setting(
        None, "pixels a side; the model's own if not given", "[1, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """What the data owner does to the images before they leave."""

    steps: tuple[CipherStep, ...] = setting(
        ("block_scrambling", "pixel_shuffling", "negative_positive"),
        "in this order, or a scheme: ViT-blockwise, EtC, LE, ELE, PE; [] is plain",
    )
    scope: Literal["shared", "client", "image", "block"] = setting(
        "shared", "a key for all, for each client, for each image, or one that differs by block"
    )
    block_size: int | None = setting(
        None, "pixels a side; 4 for LE and ELE, else the model's patch size", "[1, inf)"
    )
    fixed_blocks: int = setting(0, "blocks that scrambling leaves in their place", "[0, inf)")
    fixed_entries: int = setting(0, "entries of a block that shuffling leaves", "[0, inf)")
    adapt: bool = setting(False, "adapt the model to the key: exact, but the model betrays the key")
    allow_meaningless: bool = setting(False, "run combinations that cannot work, for demonstration")
    key_file: str = setting("keys/owner.key", "the owner's key ring; made if it is missing")


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """What of the backbone is trained and exchanged."""

    method: Literal["lora+patch_embed", "lora", "head", "full"] = setting(
        "lora+patch_embed", "which tensors are trained"
    )
    rank: int = setting(4, "rank r of the low-rank matrices", "[1, inf)")
    client_ranks: tuple[int, ...] = setting(
        (), "of the clients: one for each, or values to be dealt; [] is rank for all", "[1, inf)"
    )
    rank_shares: tuple[float, ...] = setting(
        (), "of the clients that get each of client_ranks; [] if that lists them all", "(0, 1]"
    )
    alpha: float = setting(8.0, "their scale is alpha / r", "(0, inf)")
    targets: tuple[Adapted, ...] = setting(("q", "v"), "projections of every block that get them")
    patch_embedding: Literal["aggregate", "aligned", "local"] = setting(
        "aggregate", "averaged as it is, averaged in plain coordinates, or kept by the client"
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a client does with its shard in a round."""

    optimizer: Literal["adamw", "sgd"] = setting("adamw", "local optimiser, fresh in every round")
    learning_rate: float = setting(2e-2, "at the peak of the schedule", "(0, inf)")
    patch_embed_rate: float = setting(0.25, "factor on the rate of the patch embedding", "(0, inf)")
    head_rate: float = setting(1.0, "factor on the rate of the head", "(0, inf)")
    body_rate: float = setting(0.3, "factor on the rate of all else (method full)", "(0, inf)")
    schedule: Literal["cosine", "constant"] = setting("cosine", "of the rate, over the rounds")
    warmup_rounds: int = setting(0, "rounds in which the rate rises to its peak", "[0, inf)")
    batch_size: int = setting(8, "images a step", "[1, inf)")
    epochs: int = setting(1, "passes over the shard in a round", "[1, inf)")
    weight_decay: float = setting(0.0, "of AdamW (decoupled) or SGD", "[0, inf)")
    beta1: float = setting(0.5, "of AdamW: memory of the gradient; short, for few steps", "[0, 1)")
    momentum: float = setting(0.9, "of SGD", "[0, 1)")
    clip_norm: float | None = setting(
        None, "largest gradient norm; no clipping if not given", "(0, inf)"
    )
    label_smoothing: float = setting(0.0, "of the cross-entropy", "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Which aggregation strategy, with which hyper-parameters."""

    name: str = setting("fedavg", "a file in strategies/ or 'package.module:Class'")
    options: Mapping[str, Any] = field(
        default_factory=dict, metadata={"explanation": "its parameters: --set strategy.NAME=VALUE"}
    )


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What hostile clients do, for research on robust strategies."""

    kinds: tuple[Attack, ...] = setting(
        (), "what they do to their updates, dealt to them in turn; [] is none"
    )
    clients: int = setting(0, "how many are hostile, drawn by the seed", "[0, inf)")
    factor: float = setting(100.0, "on the update of a client that scales", "(0, inf)")


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What happens to unreliable clients, for research on what a federation withstands."""

    kinds: tuple[Fault, ...] = setting(
        (), "what happens to them before they train, dealt to them in turn; [] is nothing"
    )
    clients: int = setting(0, "how many are unreliable, drawn by the seed", "[0, inf)")
    rate: float = setting(1.0, "chance that it happens to one in a round", "(0, 1]")
    delay: float = setting(10.0, "seconds that a slow one waits", "[0, inf)")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Who measures accuracy after every round."""

    by: Literal["auto", "central", "clients"] = setting(
        "auto", "clients where it takes a key or a patch embedding that only they have"
    )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """What hides an update from the server, and a client in the model."""

    secure_aggregation: bool = setting(
        False, "mask updates in pairs of clients: the server sees their sum alone"
    )
    range: float = setting(
        4.0, "largest scalar of an update that is summed securely; clipped beyond", "(0, inf)"
    )
    clipping_norm: float | None = setting(
        None, "differential privacy: largest norm C of an update; none if not given", "(0, inf)"
    )
    noise_multiplier: float = setting(
        0.0, "standard deviation z of its noise, on a sum, over the clipping norm", "[0, 1000000]"
    )
    delta: float = setting(1e-5, "the δ for which ε is computed", "(0, 1)")


@dataclass(frozen=True, kw_only=True)
class LanesConfig:
    """How tensors travel in one direction."""

    codec: str = setting(
        "float32", "of all tensors that have none below; --set compression.uplink=int4"
    )
    patch_embed: str | None = setting(None, "of the patch embedding")
    lora_A: str | None = setting(None, "of LoRA's A")  # noqa: N815 - the literature's name
    lora_B: str | None = setting(None, "of LoRA's B")  # noqa: N815
    head: str | None = setting(None, "of the head")
    other: str | None = setting(None, "of all others")


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How tensors are coded on the wire."""

    uplink: LanesConfig = LanesConfig()
    downlink: LanesConfig = LanesConfig()
    error_feedback: bool = setting(
        True, "clients send in a later round what a codec withheld in this one"
    )


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """A client's line in deployment, for which the time on the wire is told."""

    uplink_mbps: float = setting(10.0, "Mbit/s from a client to the server", "(0, inf)")
    downlink_mbps: float = setting(100.0, "Mbit/s from the server to a client", "(0, inf)")
    latency_ms: float = setting(50.0, "milliseconds that a message is on its way", "[0, inf)")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where the clients run."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto takes a GPU where there is one")
    workers: int | None = setting(
        None,
        "client processes; one a core (CPU), up to four a GPU, as its memory holds, if not given",
        "[1, inf)",
    )
    cohort: int | None = setting(
        None,
        "clients that a worker trains in one batch; an eighth of a round's, in steps of up to 64 "
        "images, if not given",
        "[1, inf)",
    )
    ray_address: str | None = setting(
        None, "of a running Ray cluster that sees the run folder; one is started here if not given"
    )
    mixed_precision: bool = setting(True, "on a GPU: bfloat16, or float16 with loss scaling")
    round_timeout: float = setting(
        3600.0, "seconds to wait for a round's replies, and as long for repeated ones", "(0, inf)"
    )
    client_timeout: float = setting(
        900.0, "seconds that a worker may take for a client before it is replaced", "(0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete experiment."""

    clients: int = setting(20, "how many hold a shard", "[1, inf)")
    rounds: int = setting(20, "of federated training", "[1, 1000000]")
    fraction: float = setting(1.0, "share of the clients that train in a round", "(0, 1]")
    min_clients: int = setting(1, "updates without which a round, and the run, fails", "[1, inf)")
    budget: Bytes | None = setting(  # noqa: RUF009 - a field, as all settings are
        None, "bytes, as 50MB: no round begins if one like the costliest before would overspend"
    )
    target_accuracy: float | None = setting(
        None, "in (0, 1]: tells after how many bytes it was first reached", "(0, 1]"
    )
    seed: int = setting(0, "of everything random but the owner's secret", "[0, inf)")
    checkpoint_every: int = setting(
        1, "rounds from one state that a run can go on from to the next; 0 is none", "[0, inf)"
    )
    out: str | None = setting(None, "run folder; a new one under runs/ if not given")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    encryption: EncryptionConfig = EncryptionConfig()
    finetuning: FineTuningConfig = FineTuningConfig()
    training: TrainingConfig = TrainingConfig()
    strategy: StrategyConfig = StrategyConfig()
    attack: AttackConfig = AttackConfig()
    faults: FaultsConfig = FaultsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    compression: CompressionConfig = CompressionConfig()
    link: LinkConfig = LinkConfig()
    engine: EngineConfig = EngineConfig()


class StrictLoader(yaml.SafeLoader):
    """Reads YAML, and tells the place of what a plain loader would let pass, or break at.

    A key that stands twice in a mapping is refused, instead of taking the last, and so are numbers
    of hundreds of digits. What Python has against a value, as 2024-99-99, is a mistake of the YAML.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Makes the value of any node."""
        try:
            value = super().construct_object(node, deep=deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            told = f"{shown(node.value)} is no value of {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from None
        if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
            told = f"a whole number of more than {LONGEST_NUMBER} bits"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Makes a mapping; ``<<`` may bring keys that are given again."""
        keys = (key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
        own = [key.value for key in keys if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in own if own.count(key) > 1}, key=str)
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep=deep)


def load(path: str | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads an experiment: defaults, then a YAML file, then overrides; and checks its ranges.

    Args:
        path: A YAML file, or none.
        overrides: Values by dotted path, for example ``{"training.epochs": 2}``.

    Returns:
        The experiment.

    Raises:
        UserError: When a key is unknown, a value does not fit, or the file cannot be read.

    Example:
        >>> load(None, {"training.learning_rate": "1e-3"}).training.learning_rate
        0.001
    """
    return resolve({} if path is None else read_yaml(path), overrides or {})


def resolve(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """Makes an experiment of nested plain values and of overrides, and checks its ranges.

    Example:
        >>> resolve({"training": {"epochs": 2}}, {"strategy": "fedprox"}).strategy.name
        'fedprox'
    """
    whole = _spell_out(copy.deepcopy(dict(tree)))
    for dotted, value in overrides.items():
        short = None if isinstance(value, Mapping) else SHORT.get(dotted.rpartition(".")[2])
        _graft(whole, f"{dotted}.{short}" if short else dotted, value)
    config = from_mapping(Config, _gather_strategy_options(_spell_out(whole)))
    _check_lists(config)
    return config


def read_yaml(name: str) -> dict[str, Any]:
    """Reads the file that `--config` names, as nested plain values.

    Raises:
        UserError: When there is none, or it holds no mapping.
    """
    path = Path(name)
    try:
        if not path.is_file():
            raise UserError(f"--config {name}: {_why_no_file(path)}")
        tree = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {name}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config {name}: not valid YAML: {' '.join(str(error).split())}"
        ) from None
    if tree is not None and not isinstance(tree, dict):
        raise UserError(f"--config {name}: expected a mapping at the top, got {shown(tree)}")
    return tree or {}


def _why_no_file(path: Path) -> str:
    """Says what is there instead of a file, or what files are near."""
    if path.exists():
        return f"expected a file, got a {'folder' if path.is_dir() else 'device or the like'}"
    near = sorted(map(str, path.parent.glob("*.yaml")))[:MOST_SHOWN]
    return f"no such file ({', '.join(near) or 'no YAML file there'})"


def _parse(text: str) -> Any:
    """Reads YAML that is no larger than an experiment may be.

    Raises:
        yaml.YAMLError: When it is none, or too large.
    """
    try:
        values = yaml.load(text, StrictLoader)
    except RecursionError:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels") from None
    _check_extent(values)
    return values


def _check_extent(values: Any) -> None:
    """Refuses what aliases multiply, or lead in a circle."""
    waiting, found = [(values, 0)], 0
    while waiting:
        (value, depth), found = waiting.pop(), found + 1
        if depth > DEEPEST:
            raise yaml.YAMLError(f"nested deeper than {DEEPEST} levels")
        if found > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        if isinstance(parts, list | tuple | set):
            waiting.extend((part, depth + 1) for part in parts)


def parse_override(text: str) -> tuple[str, Any]:
    """Reads one ``a.b=c`` of the command line; c is YAML.

    Example:
        >>> parse_override("encryption.steps=[pixel_shuffling]")
        ('encryption.steps', ['pixel_shuffling'])
    """
    path, separator, value = text.partition("=")
    if not separator or not all(name.strip() for name in path.split(".")):
        raise UserError(f"--set {shown(text)}: expected PATH=VALUE, for example training.epochs=2")
    return path.strip(), parse_value(value, f"--set {shown(text)}")


def parse_value(text: str, where: str) -> Any:
    """Reads a value as YAML writes it; ``where`` it stands is told with a mistake.

    Example:
        >>> parse_value("[[], EtC]", "--compare")
        [[], 'EtC']
    """
    try:
        return _parse(text)
    except yaml.YAMLError as error:
        why = getattr(error, "problem", None) or error
        raise UserError(f"{where}: {shown(text)} is not a YAML value ({why})") from None


def to_mapping(config: Any) -> dict[str, Any]:
    """Turns a config into nested plain values, as YAML and JSON can hold them."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    tree: dict[str, Any] = plain(config)
    if "options" in tree.get("strategy", {}):
        tree["strategy"] |= tree["strategy"].pop("options")
    return tree


def to_yaml(config: Config) -> str:
    """Writes an experiment so that `load` reads it back equal."""
    return write_yaml(to_mapping(config))


def write_yaml(tree: Mapping[str, Any]) -> str:
    """Writes nested plain values for people to read."""
    return yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True)


def differences(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Lists the settings in which two experiments differ.

    Returns:
        The two values, by dotted path.

    Example:
        >>> differences(Config(), Config(training=TrainingConfig(epochs=2)))
        {'training.epochs': (1, 2)}
    """
    ours, theirs = (dict(_leaves(to_mapping(config))) for config in (one, other))
    paths = dict.fromkeys([*ours, *theirs])
    pairs = {path: (ours.get(path), theirs.get(path)) for path in paths}
    return {path: pair for path, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def explanations(kind: type[Any] = Config, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yields (dotted path, default, explanation) of every setting."""
    hints = typing.get_type_hints(kind)
    for item in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from explanations(hints[item.name], f"{path}{item.name}.")
        elif item.name == "options":
            yield f"{path}NAME", "", item.metadata["explanation"]
        else:
            explanation = item.metadata["explanation"] + _told_choices(hints[item.name])
            yield f"{path}{item.name}", item.default, explanation


def _told_choices(hint: Any) -> str:
    """Lists the values of a setting that knows but a few."""
    inner = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    choices = typing.get_args(inner) if typing.get_origin(inner) is Literal else ()
    return f" ({', '.join(choices)})" if choices else ""


def from_mapping(kind: type[T], tree: Any, path: str = "") -> T:
    """Makes a dataclass of nested plain values.

    Args:
        kind: The dataclass.
        tree: A mapping of its field names.
        path: Where it stands in the whole, for messages.

    Returns:
        An instance of ``kind``.

    Raises:
        UserError: When a key is unknown or a value does not fit its annotation.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"{path or 'the configuration'}: expected a mapping, got {shown(tree)}")
    hints = typing.get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for key, value in tree.items():
        dotted = f"{path}.{key}" if path else str(key)
        if key not in fields:
            raise unknown("setting", dotted, (f"{path}.{n}" if path else n for n in fields))
        values[key] = convert(hints[key], value, dotted)
        _check_interval(values[key], fields[key].metadata.get("interval"), dotted)
    for name in (name for name, item in fields.items() if _is_needed(item) and name not in values):
        dotted = f"{path}.{name}" if path else name
        raise UserError(f"{dotted} needs a value: --set {dotted}=VALUE")
    return kind(**values)


def check_defaults(kind: type[Any], path: str) -> None:
    """Looks whether the defaults of a dataclass fit its own types and ranges.

    Args:
        kind: The dataclass.
        path: Where it stands in the whole, for messages.

    Raises:
        UserError: When a type is not known, a range is none, or a default is outside.
    """
    try:
        hints = typing.get_type_hints(kind)
    except (NameError, TypeError) as error:
        raise UserError(f"{path}: a type of {kind.__name__} is not known: {error}") from None
    for item in dataclasses.fields(kind):
        dotted, interval = f"{path}.{item.name}", item.metadata.get("interval")
        if interval is not None:
            _read_interval(interval, dotted)
        if item.default is dataclasses.MISSING:
            continue
        try:
            _check_interval(convert(hints[item.name], item.default, dotted), interval, dotted)
        except UserError as error:
            raise UserError(f"its default does not fit: {error}") from None


def _is_needed(item: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return item.init and item.default is missing and item.default_factory is missing


def convert(hint: Any, value: Any, path: str) -> Any:
    """Fits one value to one annotation: a type, X | None, a Literal, a tuple, or a dataclass."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type[Any], hint), value, path)
    if origin in (types.UnionType, typing.Union):  # of a NewType it is the latter
        return None if value is None else convert(arguments[0], value, path)
    if hint == tuple[CipherStep, ...]:
        return _read_steps(value, path)
    if origin is tuple:
        single = arguments[0] is int and type(value) is int
        items = [value] if single else _to_list(value, path)
        return tuple(convert(arguments[0], item, path) for item in items)
    if origin is Callable and not callable(value):
        raise UserError(f"{path}: expected a function, which cannot be set, got {shown(value)}")
    if origin is Literal and value not in arguments:
        raise unknown(path, value, map(str, arguments))
    if hint in _READ:
        return _READ[hint](value, path)
    if hint in _NAMES and type(value) is not hint:
        raise UserError(f"{path}: expected {_NAMES[hint]}, got {shown(value)}")
    return value


def _read_steps(value: Any, path: str) -> tuple[Any, ...]:
    """Reads a scheme's name or a list of steps."""
    if isinstance(value, str) and value in SCHEMES:
        return SCHEMES[value]
    steps, read = typing.get_args(CipherStep), tuple(_to_list(value, path))
    for step in read:
        if step in list(SCHEMES):
            raise UserError(f"{path}: the scheme {step} stands alone, not in a list")
        if step not in steps:
            raise unknown(f"{path}", step, [*SCHEMES, *steps])
    return read


_NAMES = {int: "a whole number", bool: "true or false"}


def _to_list(value: Any, path: str) -> Sequence[Any]:
    """Reads a list; "a,b" is one too, and nothing is an empty one."""
    if isinstance(value, str):
        return [item.strip() for item in value.split(",")]
    if value is not None and not isinstance(value, list | tuple):
        raise UserError(f"{path}: expected a list, got {shown(value)}")
    return value or []


def _to_float(value: Any, path: str) -> float:
    """Reads a number; YAML takes 1e-3 for a text, people do not."""
    try:
        number = float(value) if isinstance(value, int | float | str) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if math.isnan(number) or isinstance(value, bool):
        raise UserError(f"{path}: expected a number, got {shown(value)}")
    return number


def _to_text(value: Any, path: str) -> str:
    """Reads a text that can be the name of a file, and be written to one."""
    if not isinstance(value, str) or not value:
        raise UserError(f"{path}: expected a text, got {shown(value)}")
    encoded = value.encode(errors="replace")
    if "\0" in value or encoded.decode() != value:
        raise UserError(f"{path}: expected a text of Unicode without NUL, got {shown(value)}")
    if len(encoded) > LONGEST_TEXT or max(map(len, encoded.split(b"/"))) > LONGEST_NAME:
        raise UserError(
            f"{path}: expected at most {LONGEST_NAME} bytes between slashes, and {LONGEST_TEXT} in "
            f"all, got {shown(value)}"
        )
    return value


_READ: Mapping[Any, Callable[[Any, str], Any]] = {
    Bytes: parse_bytes,
    float: _to_float,
    str: _to_text,
}


def _graft(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Sets a value deep in a tree of mappings, making the branches that are missing."""
    *branches, leaf = dotted.split(".")
    for branch in branches:
        tree = tree.setdefault(branch, {})
        if not isinstance(tree, dict):
            raise UserError(f"{dotted}: {branch!r} is a single value, not a group of settings")
    tree[leaf] = value


def _spell_out(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Writes what is given by one value as a mapping: a strategy, or the codec of a direction."""
    whole = dict(tree)
    for key, value in tree.items():
        if key in SHORT and not isinstance(value, Mapping):
            whole[key] = {SHORT[key]: value}
        elif key in (*SHORT, "compression") and isinstance(value, Mapping):
            whole[key] = _spell_out(value)
    return whole


def _gather_strategy_options(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Moves all that stands beside a strategy's name into its options."""
    strategy = tree.get("strategy")
    if not isinstance(strategy, Mapping):
        return dict(tree)
    own = {key: value for key, value in strategy.items() if key != "name"}
    name = {"name": strategy["name"]} if "name" in strategy else {}
    return {**tree, "strategy": {**name, "options": own}}


def _check_interval(value: Any, interval: str | None, path: str) -> None:
    """Refuses a number outside its range; "(0, 1]" excludes 0 and includes 1."""
    if isinstance(value, tuple):
        for item in value:
            _check_interval(item, interval, path)
        return
    if interval is None or value is None:
        return
    low, high = _read_interval(interval, path)
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise UserError(f"{path}: expected a number in {interval}, got {value}")


def _read_interval(interval: str, path: str) -> tuple[float, float]:
    """Reads the bounds of a range."""
    try:
        low, high = (float(bound) for bound in interval[1:-1].split(","))
    except (TypeError, ValueError, AttributeError):
        low = high = float("nan")
    if not (low <= high and interval[0] in "[(" and interval[-1] in ")]"):
        raise UserError(f'{path}: {interval!r} is not a range, such as "(0, 1]" or "[0, inf)"')
    return low, high


def _check_lists(config: Config) -> None:
    """Refuses lists that no run could honour."""
    for path, items in (
        ("encryption.steps", config.encryption.steps),
        ("finetuning.targets", config.finetuning.targets),
    ):
        if len(set(items)) < len(items):
            raise UserError(f"{path}: an entry stands twice in {list(items)}")
    if config.model.image_size is not None and len(config.model.image_size) not in (1, 2):
        raise UserError("model.image_size: expected one side, or height and width")
    if not config.finetuning.targets:
        raise UserError("finetuning.targets: expected at least one of q, k, v, proj, fc1, fc2")
