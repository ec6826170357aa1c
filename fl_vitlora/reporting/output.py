"""Output that outlives its reader: a pipe that breaks or a terminal that is closed ends no run."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Outlet(io.FileIO):
    """Drops what the system does not take: the reader is gone, or the disk behind it is full."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Tells that all was written, or how much."""
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size  # none where a reader is slow and nobody may wait
        except OSError:
            return size


def outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Makes a stream to the same place that never fails for want of a reader."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Outlet(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def outlive_readers() -> None:
    """Lets this program's output outlive its readers, unless somebody has taken its place."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = outliving(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = outliving(sys.stderr)
