"""Codecs: each is a pair of pure functions that encode and decode a vector of float32 numbers.

The codec float32 writes every scalar unchanged. Quantisers write every scalar in fewer than 32
bits: float16 and bfloat16; int8, int4, int3 and int2, which round to whole multiples of a step;
ecsq, nf4, qsgd and sign. Transforms drop a large part of a vector and pass the rest to another
codec: topk and lowrank.
"""

from __future__ import annotations

import functools

from fl_vitlora.communication.codecs.absmax import Int2, Int3, Int4, Int8
from fl_vitlora.communication.codecs.codec import Codec, Floats, Shapes
from fl_vitlora.communication.codecs.ecsq import EntropyCoded
from fl_vitlora.communication.codecs.floats import BFloat16, Float16, Float32
from fl_vitlora.communication.codecs.normal_float import NormalFloat4
from fl_vitlora.communication.codecs.qsgd import QSGD
from fl_vitlora.communication.codecs.sign import Sign
from fl_vitlora.communication.codecs.spec import build
from fl_vitlora.communication.codecs.topk import TopK
from fl_vitlora.communication.codecs.truncated_svd import LowRank

__all__ = ["CODECS", "Codec", "Floats", "Shapes", "parse"]

CODECS: dict[str, type[Codec]] = {
    "float32": Float32,
    "float16": Float16,
    "bfloat16": BFloat16,
    "int8": Int8,
    "int4": Int4,
    "int3": Int3,
    "int2": Int2,
    "ecsq": EntropyCoded,
    "nf4": NormalFloat4,
    "qsgd": QSGD,
    "sign": Sign,
    "topk": TopK,
    "lowrank": LowRank,
}


@functools.lru_cache(maxsize=64)
def parse(spec: str) -> Codec:
    """Reads a codec's specification: steps joined by "+", transforms first, one quantiser last.

    Args:
        spec: A specification, for example ``"int4(128)"`` or ``"topk(0.05)+int4"``.

    Returns:
        The codec; `str(codec)` is its shortest specification.

    Raises:
        UserError: If the text is not a valid specification.

    Example:
        >>> str(parse("int8(block=64, rounding=nearest)"))
        'int8(rounding=nearest)'
        >>> parse("int5")
        Traceback (most recent call last):
        ...
        fl_vitlora.errors.UserError: unknown codec 'int5'; did you mean 'int8'? ...
    """
    return build(spec, CODECS)
