"""The recipe of a run's shards: a text that covers everything that can change a byte of them.

Equal recipes give equal shards, apart from the random salts of sealed files. A recipe contains no
secret, but it would confirm a guess of all labels and file names. Therefore it is never stored: a
store of shards only keeps a digest of it under a key (`data.shard_store`).
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

FORMAT = 1  # of the recipe and of the store
KEEPING = ("keep_shards", "keep_at_most")  # settings that say where shards are kept
ROOMS = ("data", "encryption", "storage")  # the code that reads, encrypts and writes images
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
        images: A dataclass with the images and their division among the clients. All its fields
            become part of the recipe.
        holder: The key holder that encrypts the images.
        metadata: The texts that are written into every shard.
        storage: The storage key with which the files are sealed; None if they are not sealed.

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
    """Returns a text with a digest of the code and the versions that make shards."""
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
    """Returns the names of the codecs that this version of Pillow can be asked about."""
    return {*features.modules, *features.codecs, *features.features}


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _covered(value: Any) -> Any:
    """Returns a value for JSON that covers a field of the images.

    Raises:
        TypeError: If the function cannot cover a value of this type.
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
