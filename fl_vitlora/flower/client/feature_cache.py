"""A cache of the features of clients' images, so that later rounds need not compute the backbone.

If a method never changes the backbone (`finetuning.features`), a worker computes the features of a
client's images once and writes them to a file. The file is in the folder ``features`` next to the
shards. In later rounds, every worker of the machine finds the file in this folder, also after the
run is resumed. The file is protected like the shard (`data.feature_files`). An adapted model
computes from ciphertext the features of the plain images, and an unsealed file would not protect
these features. Therefore no file is written if an unsealed shard contains ciphertext and the model
is adapted to its key. Each worker also keeps in memory the features that it used last.

The features have an origin: a digest of the frozen tensors, of the client's patch reader, of the
images, of the method, and of the settings that change how features are rounded. If the origin has
changed, the features are computed anew.

Letters in shapes: n images.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from fl_vitlora.data.feature_files import FEATURES, read_features, write_features
from fl_vitlora.data.shards import NO_KEYS, Shard
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.finetuning import products
from fl_vitlora.finetuning.features import FrozenBackbone
from fl_vitlora.models.reading import POSITION, WEIGHT, put_reader
from fl_vitlora.storage.checksummed import digest_of
from fl_vitlora.storage.files import PRIVATE_FOLDER, WriteError
from fl_vitlora.training.inputs import features_of_shard

READER = (WEIGHT, POSITION)  # the tensors of a patch reader, which may differ between clients
MOST_IN_MEMORY = 2**29  # bytes; to read features of this size from a file takes about a second


class FeatureCache:
    """Computes and keeps the features of clients' shards.

    Args:
        frozen: The worker's model in two halves: the frozen backbone, and the rest, which is
            trained.
        shards: The folder of the shards.
        keys: The storage keys of the shards' files; None if the files are not sealed (encrypted on
            disk).
        most: The largest number of bytes of all feature files of the folder. If the features of one
            shard have more bytes than `most`, they are not kept at all.
        on_disk: True if features may be written to files.
        precision: The number format of activations.
    """

    def __init__(
        self,
        *,
        frozen: FrozenBackbone,
        shards: Path,
        keys: StorageKeys | None,
        most: int,
        on_disk: bool,
        precision: torch.dtype,
    ) -> None:
        self._frozen = frozen
        self._shards = shards
        self._keys = keys or NO_KEYS
        self._most = most
        self._on_disk = on_disk
        self._precision = precision
        self._device = frozen.model.get_parameter("head.weight").device
        self._bytes_per_image: int | None = None
        self._recent: OrderedDict[str, tuple[str, Tensor]] = OrderedDict()  # origin and features

    def __call__(self, name: str, shard: Shard, reader: PatchReader) -> Tensor | None:
        """Returns the features of a client's shard; computes the features that are not kept.

        Args:
            name: The name of the shard.
            shard: The images of the shard.
            reader: The frozen part of the client's patch embedding and position embedding.

        Returns:
            The features, (n, ...), on the CPU; None if the shard is empty or its features are too
            large to be kept.
        """
        put_reader(self._frozen.model, reader)
        if len(shard) == 0 or not self._fits(shard):
            return None
        origin = self._origin(shard)
        known, features = self._recent.get(name, ("", None))
        if known != origin or features is None:
            features = self._from_file(name, origin)
        if features is None:
            features = self._computed(shard)
            self._to_file(name, origin, features)
        self._remember(name, origin, features)
        return features

    def _computed(self, shard: Shard) -> Tensor:
        return features_of_shard(self._frozen, shard, self._device, self._precision)

    def _fits(self, shard: Shard) -> bool:
        """Returns True if the features of a shard need at most the bytes allowed for all files."""
        if self._most == 0:
            return False
        if self._bytes_per_image is None:
            self._bytes_per_image = self._computed(shard.take(torch.tensor([0]))).nbytes
        return len(shard) * self._bytes_per_image <= self._most

    @functools.cached_property
    def _body(self) -> str:
        """Returns the digest of all frozen tensors of the model that belong to no patch reader."""
        model = self._frozen.model
        own = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        tensors = {**dict(model.named_buffers()), **own}
        return digest_of({n: t for n, t in tensors.items() if n not in READER}, {})

    @functools.cached_property
    def _readers(self) -> list[str]:
        """Returns the names of the model's tensors that belong to a patch reader."""
        return [name for name, _ in self._frozen.model.named_parameters() if name in READER]

    def _origin(self, shard: Shard) -> str:
        """Returns the digest of everything that the features of a shard are computed from."""
        read = {name: self._frozen.model.get_parameter(name) for name in self._readers}
        way = (self._device.type, self._precision, products.used(), torch.__version__)
        told = {"body": self._body, "part": repr(self._frozen.part), "way": repr(way)}
        return digest_of(read, told | {"images": shard.digest})

    def _path(self, name: str) -> Path:
        return self._shards / FEATURES / name

    def _from_file(self, name: str, origin: str) -> Tensor | None:
        if not self._on_disk:
            return None
        return read_features(self._path(name), origin, self._shards / name, self._keys)

    def _to_file(self, name: str, origin: str, features: Tensor) -> None:
        """Writes the features, if the folder has room for them."""
        path = self._path(name)
        if not self._on_disk:
            return
        with contextlib.suppress(WriteError, OSError):  # on a full disk the run is slower
            path.parent.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
            path.unlink(missing_ok=True)
            if _size_of(path.parent) + features.nbytes <= self._most:
                write_features(path, features, origin, self._shards / name, self._keys)

    def _remember(self, name: str, origin: str, features: Tensor) -> None:
        """Keeps the features in memory; drops features that were not used for the longest time."""
        self._recent[name] = origin, features
        self._recent.move_to_end(name)
        total = sum(kept.nbytes for _, kept in self._recent.values())
        while total > MOST_IN_MEMORY and len(self._recent) > 1:
            _, (_, oldest) = self._recent.popitem(last=False)
            total -= oldest.nbytes


def _size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
