"""A reader of bytes that refuses what is cut off or left over, and whole numbers of any length."""

from __future__ import annotations

MOST_GROUPS = 9  # of 7 bits: numbers below 2⁶³


def varint(number: int) -> bytes:
    r"""Writes a whole number in groups of 7 bits, lowest first; the top bit says that more follow.

    Args:
        number: A whole number from 0 to 2⁶³ - 1.

    Returns:
        One byte up to 127, two up to 16383, and so on (LEB128).

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
    """Walks once through a buffer.

    Example:
        >>> reader = ByteReader(varint(300) + b"abc")
        >>> reader.varint(), reader.take(2), reader.rest()
        (300, b'ab', b'c')
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """Reads so many bytes.

        Args:
            count: Not negative.

        Returns:
            The bytes.

        Raises:
            ValueError: When there are fewer.
        """
        left = len(self._data) - self._at
        if count > left:
            raise ValueError(f"cut off: {count} bytes expected, {left} left")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self) -> int:
        """Reads what `varint` wrote.

        Returns:
            The number.

        Raises:
            ValueError: When it is cut off, too large, or longer than it need be.
        """
        number = 0
        for place in range(MOST_GROUPS):
            (group,) = self.take(1)
            number |= (group & 0x7F) << (7 * place)
            if group == 0 and place:
                break
            if group < 0x80:
                return number
        raise ValueError("not a number as it is written here")

    def rest(self) -> bytes:
        """Reads all that is left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Makes sure that nothing is left.

        Raises:
            ValueError: When something is.
        """
        if left := len(self._data) - self._at:
            raise ValueError(f"{left} bytes more than expected")
