"""What an experiment is: frozen dataclasses, made of a YAML file and of `--set a.b=c`.

The dataclasses are plain values without behaviour. How they are read is told in `settings`, and
what YAML may say in `yaml_text`.
"""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fl_vitlora.errors import UserError, unknown
from fl_vitlora.settings import from_mapping, setting, to_list
from fl_vitlora.units import Bytes
from fl_vitlora.yaml_text import read_yaml, write_yaml

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

# Groups of settings that may be given by one text, and which of them that is.
SHORT: Mapping[str, str] = {"strategy": "name", "uplink": "codec", "downlink": "codec"}

Adapted = Literal["q", "k", "v", "proj", "fc1", "fc2"]
Attack = Literal["sign_flip", "scale", "nan"]
Fault = Literal["raise", "crash", "slow"]


def read_steps(value: Any, path: str) -> tuple[Any, ...]:
    """Reads a scheme's name or a list of steps.

    Raises:
        UserError: When it is neither.
    """
    if isinstance(value, str) and value in SCHEMES:
        return SCHEMES[value]
    steps, read = typing.get_args(CipherStep), tuple(to_list(value, path))
    for step in read:
        if step in list(SCHEMES):
            raise UserError(f"{path}: the scheme {step} stands alone, not in a list")
        if step not in steps:
            raise unknown(f"{path}", step, [*SCHEMES, *steps])
    return read


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
        read=read_steps,
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
    max_client_share: float | None = setting(
        None,
        "largest weight of one client among those of a round, however many images it reports; no "
        "limit if not given",
        "(0, 1]",
    )
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
