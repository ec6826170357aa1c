"""A reader that refuses buffers with too few or too many bytes, and a code for whole numbers."""

from __future__ import annotations

MOST_GROUPS = 9  # most groups of 7 bits in a number below 2⁶³


def varint(number: int) -> bytes:
    r"""Writes a whole number, 7 bits in a byte, lowest first; the top bit is 1 if a byte follows.

    Args:
        number: A whole number from 0 to 2⁶³ - 1.

    Returns:
        One byte for numbers up to 127, two bytes up to 16383, and so on (LEB128).

    Example:
        >>> varint(5), varint(300)
        (b'\x05', b'\xac\x02')
    """
    groups = [number & 0x7F]
    while number := number >> 7:
        groups[-1] |= 0x80
        groups.append(number & 0x7F)
    return bytes(groups)


class ByteReader:
    """Reads a buffer once, from its first to its last byte.

    Example:
        >>> reader = ByteReader(varint(300) + b"abc")
        >>> reader.varint(), reader.take(2), reader.rest()
        (300, b'ab', b'c')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Reads the next `count` bytes.

        Args:
            count: The number of bytes, not negative.

        Returns:
            The next `count` bytes.

        Raises:
            ValueError: If fewer than `count` bytes are left.
        """
        left = len(self._data) - self._at
        if count > left:
            raise ValueError(f"the bytes are cut off: expected {count} more bytes, got {left}")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self) -> int:
        """Reads a whole number that the function `varint` wrote.

        Returns:
            The number, from 0 to 2⁶³ - 1.

        Raises:
            ValueError: If the number is cut off, too large, or has more bytes than necessary.
        """
        number = 0
        for place in range(MOST_GROUPS):
            (group,) = self.take(1)
            number |= (group & 0x7F) << (7 * place)
            if group == 0 and place:
                break
            if group < 0x80:
                return number
        raise ValueError("a whole number has more bytes than it needs, or more than nine bytes")

    def rest(self) -> bytes:
        """Reads all remaining bytes."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Checks that all bytes were read.

        Raises:
            ValueError: If some bytes were not read.
        """
        if left := len(self._data) - self._at:
            raise ValueError(f"{left} bytes are left after the last expected byte")
