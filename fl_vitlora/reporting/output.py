"""Output that ends no run: its reader may be gone, and its encoding may lack a character."""

from __future__ import annotations

import codecs
import io
import os
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


PLAIN = {
    "±": "+-",
    "·": "*",
    "×": "x",
    "−": "-",
    "–": "-",
    "…": "...",
    "α": "alpha",
    "δ": "delta",
    "ε": "epsilon",
    "Σ": "sum",
    "²": "^2",
}
IN_PLAIN = "fl_vitlora.plain"  # the name of an error handler of `codecs`


def in_plain(error: UnicodeError) -> tuple[str | bytes, int]:
    r"""Writes what an encoding lacks in other characters, or by its number.

    Example:
        >>> codecs.register_error(IN_PLAIN, in_plain)
        >>> "95.6 ± 0.5 日".encode("ascii", IN_PLAIN)
        b'95.6 +- 0.5 \\u65e5'
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c, ascii(c)[1:-1]) for c in lacking), error.end


def outliving(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Makes a stream to the same place that never fails for want of a reader."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Outlet(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=IN_PLAIN if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def outlive_readers() -> None:
    """Lets this program's output outlive its readers, unless somebody has taken its place."""
    codecs.register_error(IN_PLAIN, in_plain)
    open_standard_files()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = outliving(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = outliving(sys.stderr)


def open_standard_files() -> None:
    """Opens the null device where standard input or output is closed.

    Otherwise the next file that is opened takes that place, and what a library prints lands in it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
