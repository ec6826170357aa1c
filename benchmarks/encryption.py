"""How long encryption takes per image, in batches, on one core, for each scheme.

python benchmarks/encryption.py
"""

from __future__ import annotations

import statistics
import time

import torch

from fl_vitlora.config import SCHEMES
from fl_vitlora.data.owner import LEARNABLE_BLOCK
from fl_vitlora.encryption.cipher import Cipher

REPEATS = 7


def seconds_per_image(cipher: Cipher, batch: int) -> list[float]:
    """Times whole batches and returns seconds for one image, once for each repeat."""
    images = torch.randint(0, 256, (batch, *cipher.image_shape), dtype=torch.uint8)
    key = cipher.key(bytes(32), "benchmark")
    cipher.encrypt(images, key)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        cipher.encrypt(images, key)
        times.append((time.perf_counter() - begin) / batch)
    return times


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    print(
        "scheme         image          block   median of 7   least    most  (microseconds an image)"
    )
    for scheme in SCHEMES:
        for side, block, batch in ((16, 4, 2048), (32, 4, 1024), (224, 16, 64)):
            size = LEARNABLE_BLOCK if scheme in ("LE", "ELE") else block
            cipher = Cipher(steps=SCHEMES[scheme], block_size=size, image_shape=(3, side, side))
            micro = [1e6 * value for value in seconds_per_image(cipher, batch)]
            print(
                f"{scheme:<13}  3 x {side:>3} x {side:<3}  {size:>5}   "
                f"{statistics.median(micro):>11.1f}  {min(micro):>6.1f}  {max(micro):>6.1f}"
            )


if __name__ == "__main__":
    main()
