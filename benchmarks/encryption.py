"""Duration of encryption per image, in batches on one core, for each scheme and scope of keys.

The last table gives the duration to write and open a shard on the disk, encrypted at rest and not.

python benchmarks/encryption.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from fl_vitlora.config import SCHEMES, CipherStep
from fl_vitlora.data.owner import LEARNABLE_BLOCK
from fl_vitlora.data.shards import Shard, client_shard, open_shard, write_shard
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, KeyHolder, Scope
from fl_vitlora.encryption.storage_keys import StorageKeys, of_secret

REPEATS = 7
SIZES = ((16, 4, 2048), (32, 4, 1024), (224, 16, 64))  # pixels a side, of a patch, images a batch
SHARDS = ((16, 72), (32, 500), (224, 100))  # pixels a side, images of a client
SCOPES: tuple[Scope, ...] = ("shared", "image")


def seconds_per_image(holder: KeyHolder, batch: int) -> list[float]:
    """Returns the seconds per image of several batches; the derivation of keys is included."""
    images = torch.randint(0, 256, (batch, *holder.cipher.image_shape), dtype=torch.uint8)
    holder.encrypt(images[:1], TEST)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        holder.encrypt(images, TEST)
        times.append((time.perf_counter() - begin) / batch)
    return times


def print_row(scheme: str, steps: tuple[CipherStep, ...], scope: Scope) -> None:
    """Prints the times of one scheme for all sizes."""
    for side, patch, batch in SIZES:
        size = LEARNABLE_BLOCK if scheme in ("LE", "ELE") else patch
        cipher = Cipher(steps=steps, block_size=size, image_shape=(3, side, side))
        count = batch if scope == "shared" else batch // 32
        holder = KeyHolder(cipher=cipher, secret=bytes(32), scope=scope)
        micro = [1e6 * value for value in seconds_per_image(holder, count)]
        print(
            f"{scheme:<13}  {scope:<6}  3 x {side:>3} x {side:<3}  {size:>5}   "
            f"{statistics.median(micro):>11.1f}  {min(micro):>8.1f}  {max(micro):>8.1f}"
        )


def print_sealing(side: int, count: int, folder: Path) -> None:
    """Prints the time to write and open a shard, encrypted at rest ("sealed") and in the clear."""
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    shard = Shard(images=images, labels=torch.zeros(count, dtype=torch.int64))
    key = of_secret(bytes(32))
    keys, path = StorageKeys(roots={key.name: key.root}), folder / client_shard(0)
    told = {"party": "client 0", "part": "train"}
    for name, storage in (("sealed", key), ("in the clear", None)):
        times: dict[str, list[float]] = {"write": [], "open": []}
        for _ in range(REPEATS):
            begin = time.perf_counter()
            write_shard(path, shard, told, storage, durable=False)
            middle = time.perf_counter()
            open_shard(path, keys)
            times["write"].append((middle - begin) / count)
            times["open"].append((time.perf_counter() - middle) / count)
        for what, seconds in times.items():
            micro = [1e6 * value for value in seconds]
            print(
                f"{name:<13}  {what:<6}  3 x {side:>3} x {side:<3}  {count:>5}   "
                f"{statistics.median(micro):>11.1f}  {min(micro):>8.1f}  {max(micro):>8.1f}"
            )


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    print(
        "scheme         keys    image          block   median of 7     least      most  "
        "(microseconds an image)"
    )
    for scope in SCOPES:
        for scheme, steps in SCHEMES.items():
            print_row(scheme, steps, scope)
    print(
        "\nshard on disk  what    image         images   median of 7     least      most  "
        "(microseconds an image)"
    )
    with tempfile.TemporaryDirectory() as folder:
        for side, count in SHARDS:
            print_sealing(side, count, Path(folder))


if __name__ == "__main__":
    main()
