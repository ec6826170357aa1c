"""The size of a serialised message, computed without serialising and hashing the message.

Flower writes a message as a tree of objects. Each object has a header and a body. The header gives
the kind, the ids of the inner objects, and the length of the body:

    KIND SPACE ID,ID,… SPACE LENGTH NUL BODY

An id is a SHA-256 digest in hexadecimal digits. All ids have the same length, so the size does not
depend on their values, and the slow hashing can be skipped. Equal objects have the same id and are
sent once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde_utils import error_to_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as MessageProto

from fl_vitlora.communication.codecs.byte_reader import varint

ID = "0" * 64  # as long as every id


def object_bytes(message: Message) -> int:
    """Returns the number of bytes of all objects of a serialised message.

    Args:
        message: The message as it is sent, with its metadata set.

    Returns:
        The number of bytes. The test `test_serialised.py` compares this number with the size of the
        objects that Flower makes, and the two must be equal.
    """
    objects = _Objects()
    within = [_of_records(objects, message.content)] if message.has_content() else []
    metadata = metadata_to_proto(message.metadata)
    metadata.message_id = ""  # the id is not serialised
    error = error_to_proto(message.error) if message.has_error() else None
    proto = MessageProto(metadata=metadata, error=error)
    objects.add("Message", within, proto.ByteSize())
    return objects.total


@dataclass
class _Objects:
    """The distinct objects of a message, numbered from 0.

    Attributes:
        sizes: The size of each object in bytes.
        contents: The content of each object; objects with equal contents are equal.
    """

    sizes: list[int] = field(default_factory=list)
    contents: list[object] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Returns the number of bytes of all objects."""
        return sum(self.sizes)

    def add(self, kind: str, within: Iterable[int], length: int, body: object = None) -> int:
        """Adds an object, unless an equal object was added before.

        Args:
            kind: The name of the object's class.
            within: The numbers of the inner objects, in order.
            length: The length of the body in bytes.
            body: The bytes of the object's body. Two objects of one kind with the same inner
                objects are equal if their bodies are equal.

        Returns:
            The number of the object.
        """
        inner = tuple(within)
        ids = max(0, len(set(inner)) * (len(ID) + 1) - 1)
        size = len(f"{kind}  {length}\0") + ids + length
        content = (kind, inner, body)
        for number, other in enumerate(self.contents):
            if self.sizes[number] == size and other == content:
                return number
        self.sizes.append(size)
        self.contents.append(content)
        return len(self.sizes) - 1


def _of_records(objects: _Objects, records: RecordDict) -> int:
    within = []
    for record in records.values():
        if isinstance(record, ArrayRecord):
            arrays = [_of_array(objects, array) for array in record.values()]
            within.append(_of_named(objects, record, record.keys(), arrays))
        else:
            within.append(_of_scalars(objects, record))
    return _of_named(objects, records, records.keys(), within)


def _of_named(
    objects: _Objects, record: RecordDict | ArrayRecord, names: Iterable[str], within: list[int]
) -> int:
    """Adds an object whose body has the name and the id of each inner object."""
    body = json.dumps(dict.fromkeys(names, ID))
    return objects.add(type(record).__qualname__, within, len(body), body)


def _of_scalars(objects: _Objects, record: ConfigRecord | MetricRecord) -> int:
    """Adds a record without inner objects, which is serialised but not hashed."""
    kind = type(record).__qualname__
    buffers = [(name, value) for name, value in record.items() if isinstance(value, bytes)]
    if len(buffers) == len(record):  # as in a folded message; the buffers are not copied
        length = sum(_field(_item(name, value)) for name, value in buffers)
        return objects.add(kind, (), length, buffers)
    _, _, body = record.deflate().partition(b"\0")
    return objects.add(kind, (), len(body), body)


def _item(name: str, value: bytes) -> int:
    """Returns the number of bytes of a named value in a record; an empty name needs no bytes."""
    return (_field(len(name.encode())) if name else 0) + _field(_field(len(value)))


def _field(length: int) -> int:
    """Returns the number of bytes of a protobuf field: tag, length and content."""
    return 1 + len(varint(length)) + length


def _of_array(objects: _Objects, array: Array) -> int:
    chunks = [objects.add("ArrayChunk", (), len(data), data) for data in _chunks(array)]
    places = {number: place for place, number in enumerate(dict.fromkeys(chunks))}
    header = {
        "dtype": array.dtype,
        "shape": array.shape,
        "stype": array.stype,
        "arraychunk_ids": [places[number] for number in chunks],
    }
    body = json.dumps(header)
    return objects.add(type(array).__qualname__, chunks, len(body), body)


def _chunks(array: Array) -> Iterator[memoryview]:
    """Cuts the bytes of an array into chunks as Flower does."""
    data = memoryview(array.data)
    for begin in range(0, len(data), FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE):
        yield data[begin : begin + FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE]
