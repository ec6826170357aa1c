"""The format of messages (parcels): a head with a table of contents, then the coded tensors.

    magic "FVL2"    4 bytes; the digit is the version
    checksum        8 bytes, BLAKE2b of all that follows
    lengths         two varints: the length of the compressed head, and of the uncompressed head
    head            msgpack, deflated with a dictionary of words that both sides know
    bodies          the sections of coded tensors, one after the other

The head holds plain values (scalars and lists, by record) and a table of the coded tensors. A
record is a named part of a Flower message. A *part* (class `Part`) holds coded tensors of one
record, in one section for each group of tensors that share a codec. For each part, the table gives
the record, the digest of the layout, and a bit mask of the tensors in the part. The layout is the
list of names and shapes of all tensors. For each section, the table gives the group of its tensors,
their codec, and the length of the section in bytes. Names and shapes themselves are not sent,
because client and server build the same model. A part that was made for a model with another layout
is refused.

A buffer that was cut or changed, or that does not have this format, is refused before any tensor is
decoded. The checksum protects against accidents, not against an attacker. Lengths are checked
before memory is allocated.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack

from fl_vitlora.communication.codecs.byte_reader import ByteReader, varint

MAGIC = b"FVL2"
CHECKSUM_BYTES = 8
MOST_INFLATION = 16  # highest ratio of uncompressed to compressed length, to limit the memory
SMALL_HEAD = 4096  # a head of at most this number of bytes may have any compression ratio

# Words of many heads, the most frequent last, since deflate needs fewer bits for a near match.
DICTIONARY = (
    b"secure-sum public-key private-key clients shares keys range dropped seeds masked other body "
    b"merged increments merged-ranks merges broadcast report views accuracy/ loss/ taken frozen "
    b".lora_A .lora_B spared spared-since proximal-mu clipping_norm norm_bit float16 bfloat16 nf4 "
    b"qsgd lowrank(4)+ int8 int4 int2 topk(0.1)+ sign float32 head patch_embed lora_A lora_B "
    b"client train_loss steps num-examples metrics learning-rate server-round config arrays"
)


class RefusedError(ValueError):
    """An error that says why a message cannot be read."""

    def __init__(self, why: str) -> None:
        super().__init__(f"message refused: {why}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """The coded tensors of one group.

    Attributes:
        group: The name of the group of tensors, for example ``lora_A``.
        codec: The specification of the codec that wrote the body (`codecs.parse`); for masked
            bytes, the name of their type.
        body: The bytes that the codec wrote.
    """

    group: str
    codec: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Part:
    """The coded tensors of one record (a named component of a message), without their names.

    Attributes:
        digest: The digest of the layout, the list of names and shapes of all tensors.
        marks: A bit mask of the tensors in the part (`Layout.mark`); empty if it has all tensors of
            the layout.
        sections: One section for each group of tensors.
    """

    digest: bytes = b""
    marks: bytes = b""
    sections: tuple[Section, ...] = ()

    @property
    def size(self) -> int:
        """Returns the number of bytes of all sections."""
        return sum(len(section.body) for section in self.sections)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """The content of a message: plain values and coded tensors.

    Attributes:
        plain: Scalars, texts, bytes and lists of them, in nested mappings.
        parts: Pairs: the name of a record of the message, and coded tensors of this record. One
            record may occur in several pairs.
    """

    plain: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[tuple[str, Part], ...] = ()


def write(parcel: Parcel, before: dict[object, bytes] | None = None) -> bytes:
    """Writes a parcel (the content of a message) into one buffer.

    Args:
        parcel: The content of the message.
        before: A cache of written buffers, so that equal contents are written only once. This
            function adds the new buffer to the cache.

    Returns:
        The buffer, which `read` can read.

    Example:
        >>> part = Part(sections=(Section(group="head", codec="int8", body=bytes(10)),))
        >>> len(write(Parcel(parts=(("arrays", part),))))
        47
    """
    table = [
        [record, part.digest, part.marks, [[s.group, s.codec, len(s.body)] for s in part.sections]]
        for record, part in parcel.parts
    ]
    head: bytes = msgpack.packb([parcel.plain, table])
    bodies = [section.body for _, part in parcel.parts for section in part.sections]
    if before is None:
        return _written(head, bodies)
    key = (head, *bodies)
    if key not in before:
        before[key] = _written(head, bodies)
    return before[key]


def _written(head: bytes, bodies: Sequence[bytes]) -> bytes:
    deflate = zlib.compressobj(9, wbits=-15, zdict=DICTIONARY)
    deflated = deflate.compress(head) + deflate.flush()
    rest = b"".join([varint(len(deflated)), varint(len(head)), deflated, *bodies])
    return MAGIC + _checksum(rest) + rest


def read(buffer: bytes) -> Parcel:
    """Reads a buffer that `write` wrote.

    Args:
        buffer: The buffer as it was received.

    Raises:
        RefusedError: If the buffer does not have the format of messages, is cut off or is
            corrupted.
    """
    begin = len(MAGIC) + CHECKSUM_BYTES
    if not buffer.startswith(MAGIC):
        start = bytes(buffer[: len(MAGIC)])
        version = "; both sides must have the same version" if start[:3] == MAGIC[:3] else ""
        raise RefusedError(
            f"it begins with {start!r}, expected {MAGIC!r} as its first bytes{version}"
        )
    if buffer[len(MAGIC) : begin] != _checksum(memoryview(buffer)[begin:]):
        raise RefusedError("its checksum is wrong, so it was cut or corrupted on its way")
    reader = ByteReader(buffer[begin:])
    try:
        plain, table = _read_head(reader)
        parts = []
        for record, digest, marks, rows in table:
            sections = []
            for group, codec, size in rows:
                _expect(isinstance(group, str) and isinstance(codec, str))
                _expect(type(size) is int and size >= 0)
                sections.append(Section(group=group, codec=codec, body=reader.take(size)))
            _expect(isinstance(record, str))
            _expect(isinstance(digest, bytes) and isinstance(marks, bytes))
            parts.append((record, Part(digest=digest, marks=marks, sections=tuple(sections))))
        reader.end()
        _expect(isinstance(plain, dict))
    except (ValueError, TypeError, zlib.error, msgpack.UnpackException, RecursionError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError(f"it cannot be read: {error}") from None
    return Parcel(plain=plain, parts=tuple(parts))


def _read_head(reader: ByteReader) -> Any:
    """Decompresses and reads the head."""
    short, length = reader.varint(), reader.varint()
    if length > MOST_INFLATION * short + SMALL_HEAD:
        raise RefusedError(
            "it states a length of its head that is too large for its compressed bytes"
        )
    inflate = zlib.decompressobj(wbits=-15, zdict=DICTIONARY)
    head = inflate.decompress(reader.take(short), length + 1)
    if len(head) != length or not inflate.eof or inflate.unused_data:
        raise RefusedError("the length of its head differs from the length that it states")
    return msgpack.unpackb(head)


def _expect(held: bool) -> None:
    if not held:
        raise RefusedError("its head contains values of an unexpected type")


def _checksum(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECKSUM_BYTES).digest()
