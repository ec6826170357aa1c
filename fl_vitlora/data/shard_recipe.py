"""The recipe of a run's shards: a text with everything that can change a byte of the shards.

Equal recipes give equal shards, apart from the random salts of sealed files. A recipe contains no
secret, but a person who guesses all labels and file names could check the guess with the recipe.
Therefore a recipe is never stored. A store of shards keeps only a digest of the recipe, which is
computed with a key (`data.shard_store`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl_vitlora.config import DataConfig
from fl_vitlora.data.images import Images
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.storage_keys import StorageKey

FORMAT = 1  # the version of the format of the recipe and of the store
KEEPING = ("keep_shards", "keep_at_most")  # settings that do not change the shards
ROOMS = ("data", "encryption", "storage")  # packages that read, encrypt and write images
LIBRARIES = (  # libraries that read, divide, convert, encrypt or write images
    *(
        "fl_vitlora",
        "numpy",
        "torch",
        "pillow",
        "scikit-learn",
        "datasets",
        "pyarrow",
        "flwr-datasets",
    ),
    *("pydicom", "cryptography", "safetensors"),
)
CODECS = ("jpg", "libjpeg_turbo", "jpg_2000", "libtiff", "zlib", "zlib_ng", "webp", "avif")


def write_recipe(
    config: DataConfig,
    source: str,
    images: Any,
    *,
    holder: KeyHolder,
    metadata: Mapping[str, str],
    storage: StorageKey | None,
) -> str:
    """Writes the recipe of a run's shards.

    Args:
        config: The settings of the data.
        source: The identity of the data set (`data.identity`).
        images: A dataclass with the images and their division among the clients. All fields of this
            dataclass become part of the recipe.
        holder: The key holder that encrypts the images.
        metadata: The texts that are written into every shard.
        storage: The storage key with which the files are sealed; None if the files are not sealed.

    Returns:
        The recipe, as one line of JSON.
    """
    settings = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in KEEPING
    }
    recipe = {
        "format": FORMAT,
        "source": source,
        "settings": settings,
        "images": {f.name: _covered(getattr(images, f.name)) for f in dataclasses.fields(images)},
        "metadata": dict(metadata),
        "cipher": dataclasses.asdict(holder.cipher),
        "scope": holder.scope,
        "seed": holder.seed,
        "key": holder.key_id if holder.cipher.steps else "",
        "storage": "" if storage is None else storage.name,
        "code": code_and_libraries(),
    }
    return json.dumps(recipe, sort_keys=True)


@functools.cache
def code_and_libraries() -> str:
    """Returns a text with a digest of the code that makes shards, and the versions of libraries."""
    from PIL import features

    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (package / room).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)} ".encode() + content)
    versions = [f"{name} {_version(name)}" for name in LIBRARIES]
    codecs = [f"{name} {features.version(name)}" for name in CODECS if name in _known(features)]
    processor = torch.backends.cpu.get_cpu_capability()
    return " ".join([digest.hexdigest(), *versions, *codecs, processor])


def _known(features: Any) -> set[str]:
    """Returns the names of the image codecs whose versions Pillow can report."""
    return {*features.modules, *features.codecs, *features.features}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _covered(value: Any) -> Any:
    """Returns a value for JSON; values with different contents give different results.

    Raises:
        TypeError: If this function does not know the type of the value.
    """
    match value:
        case None | str() | int():
            return value
        case np.ndarray():
            head = f"{value.dtype.str} {value.shape} ".encode()
            return hashlib.sha256(head + np.ascontiguousarray(value).tobytes()).hexdigest()
        case Images():
            return [_covered(v) for v in (value.labels, list(value.class_names), value.owners)]
        case Sequence():
            return [_covered(item) for item in value]
    raise TypeError(f"a recipe cannot cover a value of the type {type(value).__name__}")
