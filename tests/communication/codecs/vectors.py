"""Specifications of every codec, and vectors of several kinds to write with them."""

from __future__ import annotations

import numpy as np

from fl_vitlora.communication.codecs import Floats, Shapes, parse

SPECS = [
    "float32",
    "float16",
    "bfloat16",
    "int8",
    "int8(8,rounding=nearest)",
    "int4",
    "int4(128,rounding=nearest)",
    "int3",
    "int2",
    "int2(rounding=stochastic)",
    "ecsq",
    "ecsq(1.9,block=64)",
    "nf4",
    "qsgd",
    "qsgd(1,block=64)",
    "sign",
    "sign(8)",
    "topk(0.1)",
    "topk(1.0)+int8",
    "topk(0.05)+int4",
    "topk(0.02)+sign",
    "lowrank(2)",
    "lowrank(2)+int8",
    "lowrank(2)+topk(0.5)+nf4",
]

SHAPES: Shapes = ((24, 20), (7,), (), (3, 5, 8), (2, 0))
N = 24 * 20 + 7 + 1 + 3 * 5 * 8

KINDS = ["normal", "heavy tails", "sparse", "one sign", "alternating"]


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def vector(kind: str, n: int = N, seed: int = 0) -> Floats:
    """Draws a vector of about the magnitude of an update."""
    chance = draw(seed)
    values = {
        "normal": chance.standard_normal(n),
        "heavy tails": chance.standard_t(1.5, n),
        "sparse": chance.standard_normal(n) * (chance.random(n) < 0.05),
        "one sign": chance.random(n),
        "alternating": np.where(np.arange(n) % 2, 1.0, -1.0),
    }[kind]
    return (1e-3 * values).astype(np.float32)


def there_and_back(
    spec: str, values: Floats, shapes: Shapes | None = None, seed: int = 1
) -> Floats:
    """Encodes and decodes; as one tensor without shapes."""
    shapes = ((len(values),),) if shapes is None else shapes
    codec = parse(spec)
    return codec.decode(codec.encode(values, shapes, draw(seed)), shapes)


def energy(values: Floats) -> float:
    return float(np.square(values.astype(np.float64)).sum())
