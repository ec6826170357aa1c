"""Cost of codecs on the tensors of real models: bytes, error and milliseconds.

python benchmarks/codec_cost.py

The values are drawn like those of an update: normally distributed within a tensor, with a different
scale for each tensor. Times are medians on one thread, and include the format of the message.
Sending means compressing and writing, and with error feedback also decoding what was sent.
Receiving means reading and decoding. The last lines compare these times with the training of one
client of the default job for one round in the same process. The times of a codec count both ends of
the uplink and both ends of the downlink for a single update, as if no work were shared between
clients.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from fl_vitlora.communication.compression import compress, decode
from fl_vitlora.communication.lanes import read_lanes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.parcel import Parcel, read, write
from fl_vitlora.config import FineTuningConfig, ModelConfig, TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.rng import generator
from fl_vitlora.state import State, l2_norm, subtract
from fl_vitlora.training.local import LocalTask, train

MODELS = ("vit_letters_16", "vit_base_patch16_224")
CLASSES, REPEATS, IMAGES = 10, 21, 72
RECOMMENDED = "ecsq(1.4)"  # configs/thousand_fold.yaml
SPECS = (
    "float32",
    "float16",
    "int8",
    "int4",
    "nf4",
    "int3",
    "qsgd",
    "ecsq(1.4)",
    "int2",
    "sign",
    "topk(0.05)+int4",
    "topk(0.05)+sign",
    "lowrank(4)+int8",
)


def main() -> None:
    """Prints a table for each model."""
    torch.set_num_threads(1)
    coding = {}
    for name in MODELS:
        built = backbone.build(ModelConfig(name=name, weights="random"), CLASSES, 0)
        methods.prepare(built.model, FineTuningConfig(), 0)
        delta = drawn(methods.export_state(built.model))
        scalars = sum(tensor.numel() for tensor in delta.values())
        print(f"\n{name}: {scalars:,} scalars")
        print(
            f"{'codec':<18} {'bytes':>10} {'bits/scalar':>12} {'error':>7} {'send ms':>8} "
            f"{'receive ms':>11}"
        )
        for spec in SPECS:
            size, error, send, receive = measure(delta, spec)
            bits = 8 * size / scalars
            print(
                f"{spec:<18} {size:>10,} {bits:>12.2f} {error:>7.3f} {1e3 * send:>8.1f} "
                f"{1e3 * receive:>11.1f}"
            )
            if spec == RECOMMENDED:
                coding[name] = send + receive
    seconds, both = training(), 2 * coding[MODELS[0]]
    print(f"\na client's training, {IMAGES} images, one epoch: {1e3 * seconds:.0f} ms")
    print(f"{RECOMMENDED}, up and down, both ends: {1e3 * both:.1f} ms, {both / seconds:.1%}")


def drawn(like: State) -> State:
    """Draws normal values, with one scale for each tensor."""
    chance = generator(0, "benchmark")
    scales = {name: 10 ** (-3 * torch.rand(1, generator=chance)) for name in like}
    return {n: scales[n] * torch.randn(t.shape, generator=chance) for n, t in like.items()}


def measure(delta: State, spec: str) -> tuple[int, float, float, float]:
    """Returns the bytes of a message, its relative error, and the seconds to send and receive."""
    layout, lanes, everything = Layout.of(delta), read_lanes({}, spec), frozenset(delta)

    def send() -> bytes:
        draw = np.random.default_rng(0)
        part, _ = compress(delta, {}, layout, lanes=lanes, travelling=everything, draw=draw)
        return write(Parcel(parts=(("arrays", part),)))

    def receive() -> State:
        ((_, arrived),) = read(buffer).parts
        return decode(arrived, layout)

    buffer = send()
    error = l2_norm(subtract(receive(), delta)) / l2_norm(delta)
    return len(buffer), error, timed(send), timed(receive)


def training() -> float:
    """Returns the seconds that a client of the default job trains in a round."""
    built = backbone.build(ModelConfig(), CLASSES, 0)
    methods.prepare(built.model, FineTuningConfig(), 0)
    state = methods.export_state(built.model)
    chance = generator(0, "images")
    images = torch.randint(0, 256, (IMAGES, *built.image_shape), generator=chance)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=chance)
    shard = Shard(images.to(torch.uint8), labels)

    def work() -> None:
        train(
            built,
            state,
            shard,
            config=TrainingConfig(),
            task=LocalTask(learning_rate=1e-2),
            generator=generator(0, "batches"),
            precision=torch.float32,
        )

    return timed(work)


def timed(work: Callable[[], object]) -> float:
    """Returns the median duration of several calls in seconds, after one call that is not timed."""
    work()
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
