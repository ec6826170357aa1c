"""Fixed point: writes updates as words: whole numbers modulo 2³², whose sum is exact in any order.

With R the range, p the share of a client in the mean (Σ p ≤ 1) and x one of the client's numbers,

    q = round(2³⁰ · p · clip(x, ±R) / R)  mod 2³²        Σ p·x ≈ R / 2³⁰ · Σ q

The sum of K clients stays within ±(2³⁰ + K/2), far from ±2³¹, where it would wrap around. The
rounding error of the sum is at most K · R / 2³¹. Sums modulo 2³² are exact: random words can be
added to hide an update, and be subtracted again without any error (`secure_sum`). A scalar takes 4
bytes, as in float32.

The words of an update are, in this order: the delta; the report (further tensors that clients of
some strategies send), if there is one; the loss; and the number of clipped scalars, which is not
weighted by p. Delta and report have the order of the layout (the names and shapes of the tensors).

S is the number of scalars of the layout. W is the number of words: S + 2, or 2·S + 2 with a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.communication.packing import HEADER, Layout
from fl_vitlora.state import State

Words = NDArray[np.uint32]
Numbers = NDArray[np.float64]

ONE = 2.0**30  # the word that represents R
MOST_LOSS = 64.0  # the range of the loss, in nats; a larger loss is clipped to it
TAIL = 2  # words after the tensors: the loss, and the number of clipped scalars

MAGIC = b"FVS1"
WORD = np.dtype("<u4")


def to_words(numbers: Numbers, limit: float, share: float) -> Words:
    """Encodes the numbers of one client's update as words.

    Args:
        numbers: The numbers x, finite; numbers beyond the range are clipped to it.
        limit: The range R: numbers from -R to R can be encoded.
        share: The client's share p, in (0, 1].

    Returns:
        The words, uint32, in the shape of ``numbers``.

    Example:
        >>> to_words(np.array([4.0, -2.0, 9.0]), limit=4.0, share=0.5).tolist()
        [536870912, 4026531840, 536870912]
    """
    scaled = np.clip(numbers, -limit, limit) * (share * ONE / limit)
    return np.rint(scaled).astype(np.int32).view(np.uint32)


def to_numbers(words: Words, limit: float, share: float) -> Numbers:
    """Decodes a sum of words to the weighted mean of the clients' numbers, Σ p·x / Σ p.

    Args:
        words: The sum of words, Σ q mod 2³².
        limit: The range R: numbers from -R to R can be encoded.
        share: The sum Σ p over the clients in the sum.

    Returns:
        The mean, float64, in the shape of the words. The error of the mean for K clients is at most
        K · R / (2³¹ · share).

    Example:
        >>> to_numbers(np.array([536870912, 4026531840], np.uint32), limit=4.0, share=0.5).tolist()
        [4.0, -2.0]
    """
    return words.view(np.int32).astype(np.float64) * (limit / (ONE * share))


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The weighted mean of updates, decoded from the sum of their words.

    Attributes:
        delta: Weighted mean of the deltas, float32.
        report: Weighted mean of the reports (further tensors of some strategies); empty without
            reports.
        loss: Weighted mean of the losses.
        clipped: The number of scalars that the clients clipped to the range, all clients together.
    """

    delta: State
    report: State
    loss: float
    clipped: int


def encode(
    delta: Mapping[str, Tensor],
    report: Mapping[str, Tensor],
    loss: float,
    *,
    limit: float,
    share: float,
) -> Words:
    """Encodes an update as words.

    Args:
        delta: The update's tensors, of any floating type.
        report: Tensors with the names and shapes of the delta, or an empty mapping.
        loss: The client's training loss in nats.
        limit: The range R of delta and report.
        share: The client's share p in the mean, in (0, 1].

    Returns:
        The words (W,), uint32.

    Raises:
        ValueError: If a number is not finite, or the report has other tensors than the delta.
    """
    if report and Layout.of(report) != Layout.of(delta):
        raise ValueError(
            "the report must have the same names and shapes as the delta, in the same order"
        )
    numbers = np.concatenate([_flat(delta), _flat(report)])
    if not (np.isfinite(numbers).all() and math.isfinite(loss)):
        raise ValueError("its update holds NaN or infinity; a smaller learning rate may help")
    clipped = np.count_nonzero(np.abs(numbers) > limit)
    return np.concatenate(
        [
            to_words(numbers, limit, share),
            to_words(np.array([loss]), MOST_LOSS, share),
            np.array([clipped], dtype=np.uint32),
        ]
    )


def decode(total: Words, layout: Layout, *, limit: float, share: float) -> Mean:
    """Decodes the sum of the words of several updates.

    Args:
        total: The sum of words, Σ q mod 2³², uint32 (W,).
        layout: The names and shapes of the tensors in the clients' deltas.
        limit: The range R: numbers from -R to R can be encoded.
        share: The sum Σ p over the clients in the sum.

    Returns:
        The weighted mean of the updates.
    """
    numbers = to_numbers(total[:-TAIL], limit, share)
    parts = [layout.shaped(part) for part in numbers.reshape(-1, layout.scalars)]
    return Mean(
        delta=parts[0],
        report=parts[1] if len(parts) > 1 else {},
        loss=float(to_numbers(total[-TAIL:-1], MOST_LOSS, share)[0]),
        clipped=int(total[-1]),
    )


def pack_words(words: Words, layout: Layout) -> bytes:
    """Writes a header and words into one buffer.

    The header has the format of the header in `packing.pack`, but begins with "FVS1".

    Args:
        words: The words (W,), uint32.
        layout: The names and shapes of the tensors in the delta.

    Returns:
        A buffer of 20 + 4·W bytes.
    """
    header = HEADER.pack(MAGIC, layout.digest, len(words))
    return header + words.astype(WORD, copy=False).tobytes()


def unpack_words(buffer: bytes, layout: Layout) -> Words:
    """Reads a buffer that `pack_words` wrote.

    Args:
        buffer: The header and the words.
        layout: The names and shapes of the tensors in the expected delta.

    Returns:
        The words (W,), uint32.

    Raises:
        ValueError: If `pack_words` did not write the buffer, or if the buffer is cut off or belongs
            to other tensors.
    """
    if len(buffer) < HEADER.size or not buffer.startswith(MAGIC):
        raise ValueError("message refused: expected the header of masked words at its beginning")
    _, digest, count = HEADER.unpack_from(buffer)
    expected = [TAIL + layout.scalars * parts for parts in (1, 2)]
    if digest != layout.digest or count not in expected:
        raise ValueError(
            f"message refused: its {count} words do not fit the expected tensors with "
            f"{layout.scalars} scalars; do client and server build the same model?"
        )
    if len(buffer) != HEADER.size + count * WORD.itemsize:
        raise ValueError(
            f"message refused: {count} words and the header need "
            f"{HEADER.size + count * WORD.itemsize} bytes, got {len(buffer)} bytes"
        )
    return np.frombuffer(buffer, WORD, offset=HEADER.size).astype(np.uint32, copy=False)


def _flat(state: Mapping[str, Tensor]) -> Numbers:
    """Returns all scalars of a state in one vector, float64."""
    parts = [tensor.detach().to(torch.float64).reshape(-1).numpy() for tensor in state.values()]
    return np.concatenate([np.empty(0), *parts])
