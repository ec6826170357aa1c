"""A cache of the shards that a worker opened last, with a largest size in bytes.

A shard that is not sealed is mapped from its file, and the operating system can free this memory at
any time. But a sealed shard is decrypted into the memory of each worker. So a worker must not keep
all shards of a large data set open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fl_vitlora.data.shards import Shard

MOST_KEPT = 2**29  # bytes; opening shards of this size again takes about a second


class Shelf:
    """Opens shards and keeps the most recently used ones open.

    Args:
        open_shard: The function that opens a shard by its name.
        most: The largest number of bytes of images to keep. The shard that was used last is always
            kept, even if it is larger. None keeps all shards.
    """

    def __init__(self, open_shard: Callable[[str], Shard], most: int | None = MOST_KEPT) -> None:
        self._open = open_shard
        self._most = most
        self._kept: OrderedDict[str, Shard] = OrderedDict()
        self._bytes = 0

    def __call__(self, name: str) -> Shard:
        """Returns the shard of a name and opens it if it is not open.

        Args:
            name: The name of the shard.
        """
        if name not in self._kept:
            self._kept[name] = self._open(name)
            self._bytes += self._kept[name].images.nbytes
        self._kept.move_to_end(name)
        while self._most is not None and self._bytes > self._most and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.images.nbytes
        return self._kept[name]
