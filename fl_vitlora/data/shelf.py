"""Shards that a worker has open, the last ones used, as many as some memory holds.

A shard in the clear is the file's own pages, which the system reads and drops as it needs. A sealed
one is opened into memory of each worker, so that all of a large data set must not stay there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fl_vitlora.data.shards import Shard

MOST_KEPT = 2**29  # bytes; opening a shard again takes about a second for so much


class Shelf:
    """Opens shards, and keeps those used last.

    Args:
        open_shard: Opens a shard by its name.
        most: Bytes of images that are kept; one shard is, however large. None keeps all.
    """

    def __init__(self, open_shard: Callable[[str], Shard], most: int | None = MOST_KEPT) -> None:
        self._open = open_shard
        self._most = most
        self._kept: OrderedDict[str, Shard] = OrderedDict()
        self._bytes = 0

    def __call__(self, name: str) -> Shard:
        """Returns a shard by its name."""
        if name not in self._kept:
            self._kept[name] = self._open(name)
            self._bytes += self._kept[name].images.nbytes
        self._kept.move_to_end(name)
        while self._most is not None and self._bytes > self._most and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= oldest.images.nbytes
        return self._kept[name]
