"""Folding: writes all records of a Flower message into one buffer, and reads them back.

Flower serialises a message as a tree of objects. Each object has a header with the digests of the
objects inside: together about 850 bytes for an array, two records and their names. A folded message
is one buffer (`communication.parcel`), to which Flower adds about 330 bytes. Large buffers are sent
as an array, which Flower cuts into chunks.

The head of the buffer holds plain values in a dictionary. The key ``c`` of this dictionary holds
the config records, the key ``m`` the metric records, and the key ``v`` the versions of streams
(series of changes).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fl_vitlora.communication.groups import GROUPS
from fl_vitlora.communication.parcel import Parcel, Part, RefusedError, Section, read, write
from fl_vitlora.communication.stream import WHOLE
from fl_vitlora.federation.client_records import Versions
from fl_vitlora.flower.wire import messages

KEY = "f"  # a folded message has one record of this name, which has one value of this name
CONFIGS, METRICS, VERSIONS = "c", "m", "v"
LARGE = 2**20  # bytes; buffers from this size on are sent in chunks, which need more headers
OPAQUE = "masked"  # the group of masked bytes, which cannot be decoded on the way

Parts = Mapping[str, tuple[Part, ...]]  # the coded tensors (parts), by the name of the record


def fold(
    content: RecordDict,
    parts: Parts,
    versions: Versions,
    before: dict[object, bytes] | None = None,
) -> RecordDict:
    """Writes the whole content of a message into one record.

    Args:
        content: The records of the message. Array records whose names are in `parts` are not
            written, because their coded tensors are written instead.
        parts: The coded tensors of each record, by the record's name.
        versions: For each record that is a stream (a series of changes), its version before and
            after the changes.
        before: A cache of written buffers, so that equal messages are written only once. This
            function adds the new buffer to the cache.

    Returns:
        The content of the message that is sent, with one record.
    """
    table = [(record, part) for record, several in parts.items() for part in several]
    table += [
        (record, _opaque(arrays[messages.PACKED]))
        for record, arrays in content.array_records.items()
        if record not in parts
    ]
    plain: dict[str, Any] = {}
    for kind, records in ((CONFIGS, content.config_records), (METRICS, content.metric_records)):
        if records:
            plain[kind] = {name: dict(record) for name, record in records.items()}
    if versions:
        plain[VERSIONS] = dict(versions)
    return _carry(write(Parcel(plain=plain, parts=tuple(table)), before))


def _opaque(array: Array) -> Part:
    return Part(sections=(Section(group=OPAQUE, codec=array.stype, body=array.data),))


class Unfolded(NamedTuple):
    """The content of a folded message.

    Attributes:
        content: The records of the message, without the records of coded tensors.
        parts: The coded tensors of the message, by record.
        versions: For each record that is a stream (a series of changes), its version before and
            after the changes.
    """

    content: RecordDict
    parts: Parts
    versions: Versions

    @property
    def groups(self) -> dict[str, int]:
        """Returns the number of coded bytes of each group of tensors."""
        return group_bytes(self.content, self.parts)


def unfold(folded: RecordDict) -> Unfolded:
    """Reads the content of a message that `fold` wrote.

    Args:
        folded: The content of the received message.

    Raises:
        ValueError: If `fold` did not write this content.
    """
    parcel = read(_carried(folded))
    content = RecordDict()
    parts: dict[str, tuple[Part, ...]] = {}
    try:
        for name, record in parcel.plain.get(CONFIGS, {}).items():
            content[name] = ConfigRecord(record)
        for name, record in parcel.plain.get(METRICS, {}).items():
            content[name] = MetricRecord(record)
        versions = {
            name: _read_version(*pair) for name, pair in parcel.plain.get(VERSIONS, {}).items()
        }
    except (TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"message refused: its records cannot be read: {error}") from None
    for record, part in parcel.parts:
        if [section.group for section in part.sections] == [OPAQUE]:
            (section,) = part.sections
            if record in content:
                raise RefusedError(f"it holds record {record!r} twice")
            content[record] = packed_record(section.body, section.codec)
        else:
            parts[record] = (*parts.get(record, ()), part)
    return Unfolded(content, parts, versions)


def _read_version(known: object, new: object) -> tuple[int, int]:
    """Reads the versions of a stream before and after the changes in a message."""
    if type(known) is int and type(new) is int and WHOLE <= known <= new:
        return known, new
    raise RefusedError(
        "the versions of a stream must be whole numbers that do not decrease, got "
        f"{known!r}, {new!r}"
    )


def packed_record(data: bytes, kind: str) -> ArrayRecord:
    """Returns packed bytes as an array record, which the client and server apps can read."""
    return ArrayRecord({messages.PACKED: Array("uint8", (len(data),), kind, data)})


def group_bytes(content: RecordDict, parts: Parts) -> dict[str, int]:
    """Returns the number of coded bytes of each group of tensors in a message before `fold`.

    A sender can choose any name for a group. Therefore the bytes of unknown groups count as
    overhead.

    Args:
        content: The records of the message. Array records whose names are not in `parts` count as
            masked bytes (`OPAQUE`).
        parts: The coded tensors of the message, by record.
    """
    counts: dict[str, int] = {}
    for section in (s for several in parts.values() for part in several for s in part.sections):
        counts[section.group] = counts.get(section.group, 0) + len(section.body)
    for record, arrays in content.array_records.items():
        if record not in parts:
            counts[OPAQUE] = counts.get(OPAQUE, 0) + len(arrays[messages.PACKED].data)
    return {group: counts[group] for group in (*GROUPS, OPAQUE) if group in counts}


def _carry(buffer: bytes) -> RecordDict:
    if len(buffer) < LARGE:
        return RecordDict({KEY: ConfigRecord({KEY: buffer})})
    return RecordDict({KEY: packed_record(buffer, KEY)})


def _carried(folded: RecordDict) -> bytes:
    """Returns the buffer of a folded message."""
    if KEY in folded.array_records and messages.PACKED in folded.array_records[KEY]:
        return folded.array_records[KEY][messages.PACKED].data
    buffer = folded.config_records.get(KEY, ConfigRecord()).get(KEY)
    if isinstance(buffer, bytes):
        return buffer
    raise ValueError(
        "message refused: it is not in the format of this app; does its sender run another app?"
    )
