"""Output streams that never raise an error, even if the program that reads the output has ended.

If the encoding of a stream has no code for a character, a similar text is written instead.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Outlet(io.FileIO):
    """A file that ignores failed writes, for example writes after its reader has ended."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Writes data and returns the number of bytes written.

        If the system cannot write, the data are lost, and the method returns their full size.
        """
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size  # None if a non-blocking reader is too slow
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
    r"""Returns a similar text for characters without a code, and the position after them.

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
    """Returns a stream to the same file that raises no error if its reader has ended."""
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(Outlet(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=IN_PLAIN if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def outlive_readers() -> None:
    """Replaces standard output and standard error by streams that raise no error without a reader.

    A stream that other code has already replaced is not replaced again.
    """
    codecs.register_error(IN_PLAIN, in_plain)
    open_standard_files()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        sys.stdout = outliving(sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = outliving(sys.stderr)


def open_standard_files() -> None:
    """Opens the null device for each standard file (input, output, error) that is closed.

    If a standard file stayed closed, the next file that is opened would get its descriptor, and the
    output of a library would be written into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # a new file gets the lowest free descriptor: this one
