"""Entropy coding: frequent symbols are written with fewer bits than rare symbols.

The first byte says how the symbols are written: packed with equal lengths, or range-coded after a
table of the symbols' frequencies (Martin 1979, with the package `constriction`, arXiv 2201.01741).
The shorter of the two forms is used, so the result has at most one byte more than packed symbols. A
table has a byte for each possible symbol, with 4 bits of exponent and 4 bits of fraction,

    weight(byte) = (16 + fraction) · 2^exponent        0 for a symbol that never occurs

and sender and receiver compute the same probabilities from the table. The coder writes words of 4
bytes. The receiver checks that no words are left after the last symbol, and that the table fits the
decoded symbols. Because of these two checks, the receiver hardly ever accepts corrupted bytes.
"""

from __future__ import annotations

import constriction
import numpy as np
from numpy.typing import NDArray

from fl_vitlora.communication.codecs.bits import Symbols, pack, packed_bytes, unpack, width
from fl_vitlora.communication.codecs.byte_reader import ByteReader, varint

PLAIN, CODED = b"\0", b"\1"
WORD = np.dtype("<u4")
HEAVIEST = 31 << 15  # the weight of byte 255


def write_symbols(symbols: Symbols, size: int) -> bytes:
    """Writes symbols packed or range-coded, whichever takes fewer bytes.

    Args:
        symbols: The symbols (n,), n > 0, each below ``size``.
        size: The size of the alphabet, from 2 to 256 symbols.

    Returns:
        The bytes, which do not contain the number n of symbols.

    Example:
        >>> len(write_symbols(np.zeros(8000, np.uint8), 3))
        9
    """
    plain = packed_bytes(len(symbols), width(size))
    if size < plain and len(coded := _code(symbols, size)) < plain:
        return CODED + coded
    return PLAIN + pack(symbols, width(size))


def read_symbols(reader: ByteReader, n: int, size: int) -> Symbols:
    """Reads the symbols that `write_symbols` wrote.

    Args:
        reader: The reader, at the first byte of the symbols. This function moves the reader behind
            the last byte of the symbols.
        n: The number of symbols, above 0.
        size: The size of the alphabet: every symbol is below this number.

    Returns:
        The symbols (n,), each below ``size``.

    Raises:
        ValueError: If `write_symbols` cannot have written these bytes.
    """
    mode = reader.take(1)
    if mode == PLAIN:
        symbols = unpack(reader.take(packed_bytes(n, width(size))), n, width(size))
        if symbols.max() >= size:
            raise ValueError(f"a symbol must be below {size}, but a larger symbol was read")
        return symbols
    if mode != CODED:
        raise ValueError("the first byte of the symbols names an unknown format")
    return _uncode(reader, n, size)


def _code(symbols: Symbols, size: int) -> bytes:
    """Range-codes symbols: writes the table, the number of 4-byte words, and the words."""
    table = _table(np.bincount(symbols, minlength=size))
    words = _words(symbols, table).astype(WORD, copy=False).tobytes()
    return table + varint(len(words) // WORD.itemsize) + words


def _uncode(reader: ByteReader, n: int, size: int) -> Symbols:
    """Reads the symbols that `_code` wrote."""
    table = reader.take(size)
    data = reader.take(reader.varint() * WORD.itemsize)
    symbols = _symbols(np.frombuffer(data, WORD).astype(np.uint32), table, n)
    if _table(np.bincount(symbols, minlength=size)) != table:
        raise ValueError(
            "the frequencies of the symbols differ from those in the table before them"
        )
    return symbols


def _table(counts: NDArray[np.intp]) -> bytes:
    """Returns the table: for every symbol, its frequency relative to the most frequent symbol.

    Each frequency is one byte, rounded down, but at least 1 for a symbol that occurs.
    """
    weights = counts.astype(np.int64) * HEAVIEST // max(1, int(counts.max()))
    exponents = np.maximum(np.frexp(weights)[1] - 5, 0)
    entries = np.maximum((exponents << 4) + (weights >> exponents) - 16, 1)
    return np.where(counts > 0, entries, 0).astype(np.uint8).tobytes()


def _model(table: bytes) -> constriction.stream.model.Categorical:
    """Builds the coder's model from a table; the weights are whole numbers, so sums are exact."""
    entries = np.frombuffer(table, np.uint8).astype(np.int64)
    weights = np.where(entries, (16 + (entries & 15)) << (entries >> 4), 0)
    return constriction.stream.model.Categorical(weights.astype(np.float64), perfect=False)


def _words(symbols: Symbols, table: bytes) -> NDArray[np.uint32]:
    """Encodes symbols with the frequencies of a table."""
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(symbols.astype(np.int32), _model(table))
    return np.asarray(coder.get_compressed())


def _symbols(words: NDArray[np.uint32], table: bytes, n: int) -> Symbols:
    """Decodes n symbols from range-coded words.

    A coder that fails raises many types of exceptions, so all of them are caught.
    """
    try:
        coder = constriction.stream.queue.RangeDecoder(words)
        symbols = np.asarray(coder.decode(_model(table), n)).astype(np.uint8)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # an error in the compiled coder is not a subclass of Exception
        raise ValueError("the words cannot be decoded: no range coder has written them") from None
    if not coder.maybe_exhausted():
        raise ValueError("words are left after the last symbol")
    return symbols
