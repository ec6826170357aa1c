"""How long encryption takes per image, in batches, on one core, for each scheme and number of keys.

python benchmarks/encryption.py
"""

from __future__ import annotations

import statistics
import time

import torch

from fl_vitlora.config import SCHEMES, CipherStep
from fl_vitlora.data.owner import LEARNABLE_BLOCK
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, KeyHolder, Scope

REPEATS = 7
SIZES = ((16, 4, 2048), (32, 4, 1024), (224, 16, 64))  # pixels a side, of a patch, images a batch
SCOPES: tuple[Scope, ...] = ("shared", "image")


def seconds_per_image(holder: KeyHolder, batch: int) -> list[float]:
    """Times whole batches, their keys included, and returns seconds for one image, each time."""
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


if __name__ == "__main__":
    main()
