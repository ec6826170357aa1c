"""What an experiment is: frozen dataclasses, made of a YAML file and of `--set a.b=c`.

The dataclasses are plain values without behaviour. How they are read is told in `settings`, and
what YAML may say in `yaml_text`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fl_vitlora.config.method_names import read_method, read_parameters
from fl_vitlora.config.rates import LETTERS, ORDINARY, Rates
from fl_vitlora.config.settings import setting, to_list
from fl_vitlora.config.units import Bytes
from fl_vitlora.errors import UserError, unknown

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

# Groups of settings that may be given by one value, and the setting that gets it.
SHORT: Mapping[str, str] = {"strategy": "name", "uplink": "codec", "downlink": "codec"}

# Settings that are, or may be, the path of a file or folder.
PATHS = ("out", "data.name", "model.weights", "encryption.key_file")

RATES = tuple(item.name for item in dataclasses.fields(Rates))  # settings that depend on the model
AUTO = "auto"

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
    """The images, and how they are divided among the clients."""

    name: str = setting(
        "digits", "The data: 'digits' (bundled), a Hugging Face data set, or a local path."
    )
    config: str | None = setting(None, "Configuration of a Hugging Face data set that has several.")
    revision: str | None = setting(None, "Branch, tag or commit of a Hugging Face data set.")
    train_split: str | None = setting(
        None, "Name of the split to train on. Default: found by its name."
    )
    test_split: str | None = setting(
        None,
        "Name of the split to test on, or 'none' to hold out a share of the training images. "
        "Default: found by its name.",
    )
    layout: Literal["auto", "classes", "splits", "clients", "table"] = setting(
        "auto",
        "What the first folders of a folder of images are, or that a table lists the images.",
    )
    image_column: str | None = setting(
        None, "Column that holds the images. Default: found by its type."
    )
    label_column: str | None = setting(
        None, "Column that holds the labels. Default: found by its type."
    )
    fit: Literal["squash", "crop", "pad"] = setting(
        "squash", "How images of another aspect ratio than the model's are made to fit."
    )
    background: tuple[int, ...] = setting(
        (255, 255, 255),
        "Colour behind transparent pixels and beside padded images: a grey level, or red, green "
        "and blue.",
        "[0, 255]",
    )
    pixel_range: tuple[float, ...] = setting(
        (),
        "The two values that become black and white in images of more than 8 bits; [] takes the "
        "range of the file format.",
    )
    partition: Literal["dirichlet", "iid", "pathological", "shard", "natural"] = setting(
        "dirichlet",
        "How the images are divided among the clients; natural keeps a folder for each client.",
    )
    alpha: float = setting(
        0.5,
        "Concentration of the Dirichlet partition; a small value makes clients differ more.",
        "(0, inf)",
    )
    classes_per_client: int = setting(
        2, "Number of labels that each client holds in the pathological partition.", "[1, inf)"
    )
    shards_per_client: int = setting(
        2,
        "Number of label-sorted shards that each client holds in the shard partition.",
        "[1, inf)",
    )
    min_samples: int = setting(2, "Smallest number of images that a client may hold.", "[1, inf)")
    test_fraction: float = setting(
        0.2,
        "Share of the images that becomes the test set where the data has no test split.",
        "(0, 1)",
    )
    limit: int | None = setting(
        None,
        "Use only this many training images and this many test images. Default: all.",
        "[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone and its weights."""

    name: str = setting(
        "vit_letters_16",
        "The backbone: 'vit_letters_16', 'vit_letters_16_plain' (both bundled) or any timm ViT.",
    )
    weights: str = setting(
        "pretrained",
        "Weights of the backbone: 'pretrained' (bundled or from the hub), 'random', or a local "
        "file.",
    )
    image_size: tuple[int, ...] | None = setting(
        None,
        "Side of the images in pixels, or [height, width]. Default: the model's own.",
        "[1, inf)",
    )
    patch_size: int | None = setting(
        None, "Side of a patch in pixels. Default: the model's own.", "[1, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """How the data owner encrypts the images before anybody else gets them."""

    steps: tuple[CipherStep, ...] = setting(
        ("block_scrambling", "pixel_shuffling", "negative_positive"),
        "Steps of the encryption, in this order, or a scheme: ViT-blockwise, EtC, LE, ELE, PE; [] "
        "means plain images.",
        read=read_steps,
    )
    scope: Literal["shared", "client", "image", "block"] = setting(
        "shared",
        "Which images share a key: all of them, those of one client, each image for itself, or one "
        "key that differs by block.",
    )
    block_size: int | None = setting(
        None,
        "Side of an encryption block in pixels. Default: 4 for LE and ELE, else the model's patch "
        "size.",
        "[1, inf)",
    )
    fixed_blocks: int = setting(
        0, "Number of blocks that block scrambling leaves in their place.", "[0, inf)"
    )
    fixed_entries: int = setting(
        0, "Number of entries of a block that pixel shuffling leaves in their place.", "[0, inf)"
    )
    adapt: bool = setting(
        False, "Adapt the model to the key. The result is exact, but the model reveals the key."
    )
    allow_meaningless: bool = setting(
        False, "Run combinations of settings that cannot work, for demonstration."
    )
    key_file: str = setting(
        "keys/owner.key", "The owner's key ring: a file of secrets. It is made if it is missing."
    )
    at_rest: Literal["ring", "passphrase", "none"] = setting(
        "ring",
        "What seals the shards on the disk, plain ones too: a key of the ring, the passphrase in "
        "the variable FL_VITLORA_PASSPHRASE, or nothing.",
    )


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Which tensors of the backbone are trained and exchanged."""

    method: str = setting(
        "lora+patch_embed",
        "Which tensors are trained and exchanged beside the head: a sum of bias, dora, full, head, "
        "lora, lora_xs, norm, patch_embed and 'package.module:Class'.",
        read=read_method,
    )
    parameters: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "explanation": "Parameters of the method's parts that are no settings, for example "
            "--set finetuning.parameters.gain=2.",
            "read": read_parameters,
        },
    )
    rank: int = setting(4, "Rank r of the low-rank matrices.", "[1, inf)")
    client_ranks: tuple[int, ...] = setting(
        (),
        "Ranks of the clients: one for each client, or values that rank_shares distributes; [] "
        "gives every client finetuning.rank.",
        "[1, inf)",
    )
    rank_shares: tuple[float, ...] = setting(
        (),
        "Share of the clients that gets each value of client_ranks; [] if client_ranks lists one "
        "rank for each client.",
        "(0, 1]",
    )
    alpha: float = setting(
        8.0, "Scale of the low-rank matrices: their product is multiplied by alpha / r.", "(0, inf)"
    )
    targets: tuple[Adapted, ...] = setting(
        ("q", "v"), "Layers of every transformer block that get low-rank matrices."
    )
    patch_embedding: Literal["aggregate", "aligned", "local"] = setting(
        "aggregate",
        "What happens to the clients' patch embeddings: averaged as they are, averaged in plain "
        "coordinates, or kept by each client.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a client trains on its shard in a round."""

    optimizer: Literal["adamw", "sgd"] = setting(
        "adamw", "Optimiser of the clients; it starts afresh in every round."
    )
    learning_rate: float = setting(
        LETTERS.learning_rate,
        "Learning rate at the peak of the schedule. The default is that of the bundled models; "
        f"other models have {ORDINARY.learning_rate:g}.",
        "(0, inf)",
    )
    patch_embed_rate: float = setting(
        LETTERS.patch_embed_rate,
        "Factor on the learning rate of the patch embedding. Default of other models than the "
        f"bundled: {ORDINARY.patch_embed_rate:g}.",
        "(0, inf)",
    )
    head_rate: float = setting(
        LETTERS.head_rate,
        "Factor on the learning rate of the head. Default of other models than the bundled: "
        f"{ORDINARY.head_rate:g}.",
        "(0, inf)",
    )
    body_rate: float = setting(
        LETTERS.body_rate,
        "Factor on the learning rate of all other tensors (method full). Default of other models "
        f"than the bundled: {ORDINARY.body_rate:g}.",
        "(0, inf)",
    )
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "How the learning rate changes over the rounds."
    )
    warmup_rounds: int = setting(
        0, "Number of rounds in which the learning rate rises to its peak.", "[0, inf)"
    )
    batch_size: int = setting(8, "Number of images in a training step.", "[1, inf)")
    epochs: int = setting(
        1, "Number of passes over a client's images in a round (local epochs).", "[1, inf)"
    )
    weight_decay: float = setting(0.0, "Weight decay of AdamW (decoupled) or SGD.", "[0, inf)")
    beta1: float = setting(
        LETTERS.beta1,
        "AdamW's decay rate of the mean gradient; small, because a round has few steps. Default of "
        f"other models than the bundled: {ORDINARY.beta1:g}.",
        "[0, 1)",
    )
    momentum: float = setting(0.9, "Momentum of SGD.", "[0, 1)")
    clip_norm: float | None = setting(
        None,
        "Largest norm of a gradient; a longer one is scaled down. Default: no clipping.",
        "(0, inf)",
    )
    label_smoothing: float = setting(0.0, "Label smoothing of the cross-entropy loss.", "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """The aggregation strategy and its hyper-parameters."""

    name: str = setting(
        "fedavg", "The aggregation strategy: a file in strategies/ or 'package.module:Class'."
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"explanation": "A parameter of the strategy, for example --set strategy.mu=0.1."},
    )


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What hostile clients do, for research on robust strategies."""

    kinds: tuple[Attack, ...] = setting(
        (), "What hostile clients do to their updates, assigned to them in turn; [] means nothing."
    )
    clients: int = setting(0, "Number of hostile clients; the seed chooses which.", "[0, inf)")
    factor: float = setting(
        100.0, "Factor by which a hostile client of kind scale multiplies its update.", "(0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What happens to unreliable clients, for research on what a federation withstands."""

    kinds: tuple[Fault, ...] = setting(
        (),
        "What happens to unreliable clients before they train, assigned to them in turn; [] means "
        "nothing.",
    )
    clients: int = setting(0, "Number of unreliable clients; the seed chooses which.", "[0, inf)")
    rate: float = setting(
        1.0, "Probability that it happens to an unreliable client in a round.", "(0, 1]"
    )
    delay: float = setting(
        10.0, "Seconds that an unreliable client of kind slow waits.", "[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Who measures accuracy after every round."""

    by: Literal["auto", "central", "clients"] = setting(
        "auto",
        "Who measures the test accuracy; auto chooses clients where only they have the key or the "
        "patch embedding.",
    )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Secure aggregation and differential privacy."""

    secure_aggregation: bool = setting(
        False, "Mask the updates in pairs of clients, so that the server sees only their sum."
    )
    range: float = setting(
        4.0,
        "Largest absolute value in an update under secure aggregation; larger ones are clipped.",
        "(0, inf)",
    )
    clipping_norm: float | None = setting(
        None,
        "Largest norm C of an update, for differential privacy. Default: no differential privacy.",
        "(0, inf)",
    )
    noise_multiplier: float = setting(
        0.0,
        "Standard deviation of the noise on the sum of the updates, divided by the clipping norm.",
        "[0, 1000000]",
    )
    target_epsilon: float | None = setting(
        None,
        "Largest epsilon of the whole run; it chooses noise_multiplier, which is then left at 0.",
        "(0, inf)",
    )
    delta: float = setting(1e-5, "The delta for which epsilon is computed.", "(0, 1)")


@dataclass(frozen=True, kw_only=True)
class LanesConfig:
    """How tensors are compressed in one direction."""

    codec: str = setting(
        "float32",
        "Codec of all tensors without a codec of their own, for example int4.",
    )
    patch_embed: str | None = setting(None, "Codec of the patch embedding. Default: codec.")
    lora_A: str | None = setting(None, "Codec of the LoRA matrices A. Default: codec.")  # noqa: N815 - the literature's name
    lora_B: str | None = setting(None, "Codec of the LoRA matrices B. Default: codec.")  # noqa: N815
    head: str | None = setting(None, "Codec of the head. Default: codec.")
    other: str | None = setting(None, "Codec of all other tensors. Default: codec.")


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How tensors are compressed in both directions."""

    uplink: LanesConfig = LanesConfig()
    downlink: LanesConfig = LanesConfig()
    error_feedback: bool = setting(True, "Send in a later round what a codec withheld in this one.")


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """A client's network line, for which the transfer time is computed."""

    uplink_mbps: float = setting(
        10.0, "Speed of a client's line to the server in Mbit/s.", "(0, inf)"
    )
    downlink_mbps: float = setting(
        100.0, "Speed of the line from the server to a client in Mbit/s.", "(0, inf)"
    )
    latency_ms: float = setting(50.0, "Milliseconds that a message is on its way.", "[0, inf)")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where the clients run."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "Where the clients compute; auto takes a GPU if there is one."
    )
    workers: int | None = setting(
        None,
        "Number of worker processes. Default: one for each core, or up to four for each GPU.",
        "[1, inf)",
    )
    cohort: int | None = setting(
        None,
        "Number of clients that a worker trains in one batch. Default: an eighth of a round's "
        "clients, in steps of up to 64 images.",
        "[1, inf)",
    )
    ray_address: str | None = setting(
        None,
        "Address of a running Ray cluster that can read the run folder. Default: start Ray here.",
    )
    mixed_precision: bool = setting(
        True,
        "Compute in bfloat16 on a GPU, or in float16 with loss scaling where the GPU has no "
        "bfloat16.",
    )
    round_timeout: float = setting(
        3600.0,
        "Seconds to wait for the replies of a round; repeated messages get as long again.",
        "(0, inf)",
    )
    client_timeout: float = setting(
        900.0, "Seconds that a worker may take for one client before it is replaced.", "(0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete experiment."""

    clients: int = setting(20, "Number of clients; each holds a shard of the images.", "[1, inf)")
    rounds: int = setting(20, "Number of rounds of federated training.", "[1, 1000000]")
    fraction: float = setting(1.0, "Share of the clients that train in a round.", "(0, 1]")
    max_client_share: float | None = setting(
        None,
        "Largest weight of one client among those of a round, however many images it reports. "
        "Default: no limit.",
        "(0, 1]",
    )
    min_clients: int = setting(
        1, "Fewest usable updates that a round needs; with fewer the run stops.", "[1, inf)"
    )
    budget: Bytes | None = setting(  # noqa: RUF009 - a field, as all settings are
        None,
        "Bytes that the run may send, for example 50MB; a round that could overspend does not "
        "begin. Default: no limit.",
    )
    target_accuracy: float | None = setting(
        None,
        "Test accuracy, for example 0.95; the result tells after how many bytes it was first "
        "reached.",
        "(0, 1]",
    )
    seed: int = setting(0, "Seed of everything random except the owner's secret.", "[0, inf)")
    checkpoint_every: int = setting(
        1,
        "Number of rounds between two checkpoints, from which --resume can continue; 0 writes "
        "none.",
        "[0, inf)",
    )
    out: str | None = setting(None, "Run folder. Default: a new folder under runs/.")
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
