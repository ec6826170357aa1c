"""A cache of the shards that a worker has opened last, with a limit in bytes.

A shard is a file with the images of one client. A shard that is not sealed (encrypted on disk) is
mapped from its file into memory, and the operating system can free this memory at any time. A
sealed shard, however, is decrypted into the memory of each worker. Therefore a worker must not keep
all shards of a large data set open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fl_vitlora.data.shards import Shard

MOST_KEPT = 2**29  # in bytes; opening shards of this total size again takes about a second


class Shelf:
    """A cache that opens shards and keeps the most recently used shards open.

    Args:
        open_shard: A function that takes the name of a shard and opens it.
        most: The largest number of bytes of images to keep. The shard that was used last is always
            kept, even if its images have more bytes than `most`. If `most` is None, all shards are
            kept.
    """

    def __init__(self, open_shard: Callable[[str], Shard], most: int | None = MOST_KEPT) -> None:
        self._open = open_shard
        self._most = most
        self._kept: OrderedDict[str, Shard] = OrderedDict()
        self._bytes = 0

    def __call__(self, name: str) -> Shard:
        """Returns the shard with the given name; opens the shard if it is not open yet.

        Args:
            name: The name of the shard's file.
        """
        if name not in self._kept:
            self._kept[name] = self._open(name)
            self._bytes += self._kept[name].images.nbytes
        self._kept.move_to_end(name)
        while self._most is not None and self._bytes > self._most and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.images.nbytes
        return self._kept[name]
