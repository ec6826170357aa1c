"""Chooses the library for matrix products by measuring both libraries on this machine.

Which of MKL and oneDNN is faster depends on the processor, on PyTorch's version and on the sizes of
the layers. The module `finetuning.products` describes the two libraries. The library is chosen once
for each machine and model, and the choice is kept in a file of the user's cache folder. The reason
is that the libraries round differently: with another choice, a repeated run would not have the same
bits. The file `environment.json` of a run folder also names the choice, and a resumed run does not
choose again.

Letters in shapes: n inputs and m outputs of a layer.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from fl_vitlora.finetuning import products
from fl_vitlora.storage.files import WriteError, make_folder, write_atomically

REPETITIONS = 7  # measurements with each library; the fastest counts
OPERATIONS = 5e8  # the most multiplications of a measured product, which takes a few milliseconds
Shapes = Mapping[tuple[int, int], int]  # the number of layers of each size (m, n)


def choose_library(model: nn.Module, device: str, rows: int) -> str:
    """Returns the library with which the frozen linear layers of a model compute.

    Args:
        model: The model, whose layers `nn.Linear` without trained tensors are measured.
        device: The device of the run. On a GPU there is no choice.
        rows: The number of rows of a product, which is the number of patches in a training step.

    Returns:
        The library that the environment variable names, or else the faster library.

    Raises:
        UserError: If the environment variable names an unknown library.
    """
    named = products.named_library()
    shapes = shapes_of(model)
    if named or device != "cpu" or not shapes or not products.has_choice():
        return named or products.DEFAULT
    machine, kept = description(shapes, rows), read_choices()
    if kept.get(machine) not in products.LIBRARIES:
        kept = {**kept, machine: fastest(shapes, rows)}
        keep_choices(kept)
    return kept[machine]


def shapes_of(model: nn.Module) -> Shapes:
    """Returns how many frozen linear layers of each size (m, n) a model has."""
    return Counter(
        (layer.out_features, layer.in_features)
        for layer in model.modules()
        if products.is_frozen_linear(layer)
    )


def fastest(shapes: Shapes, rows: int) -> str:
    """Measures both libraries on the layers of a model, and returns the name of the faster one.

    Args:
        shapes: The number of layers of each size.
        rows: The number of rows of a product. Fewer rows are measured if the layers are large.
    """
    seconds = dict.fromkeys(products.LIBRARIES, 0.0)
    with one_thread():
        for (m, n), count in shapes.items():
            measured_rows = max(1, min(rows, int(OPERATIONS / (m * n))))
            for library, spent in seconds_of(m, n, measured_rows).items():
                seconds[library] += count * spent
    return min(seconds, key=lambda library: seconds[library])


def seconds_of(m: int, n: int, rows: int) -> dict[str, float]:
    """Measures a product and the gradient of its inputs with each library.

    The libraries take turns, because the processor may change its clock rate during the
    measurement. Only the processor time of this thread counts, because the processes of Ray may
    start on the same processor at the same time.

    Args:
        m: The number of outputs of the layer.
        n: The number of inputs of the layer.
        rows: The number of rows of the product.

    Returns:
        The shortest time of each library in seconds, by the name of the library.
    """
    single = torch.float32  # there is a choice only for this format
    weight = torch.ones(m, n, dtype=single)
    inputs = torch.ones(rows, n, dtype=single, requires_grad=True)
    gradient = torch.ones(rows, m, dtype=single)
    times: dict[str, list[float]] = {library: [] for library in products.LIBRARIES}
    for _ in range(REPETITIONS):
        for library, spent in times.items():
            compute = products.one_dnn_linear if library == "onednn" else F.linear
            begin = time.thread_time()
            torch.autograd.grad(compute(inputs, weight, None), inputs, gradient)
            spent.append(time.thread_time() - begin)
    return {library: min(spent) for library, spent in times.items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets PyTorch compute with one thread inside a `with` block, as each worker does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def description(shapes: Shapes, rows: int) -> str:
    """Returns a line that describes the processor, PyTorch and the sizes of the products."""
    sizes = " ".join(f"{count}x{m}x{n}" for (m, n), count in sorted(shapes.items()))
    return f"{processor()}, PyTorch {torch.__version__}, {rows} rows, layers {sizes}"


def processor() -> str:
    """Returns the name of the processor, such as "Intel(R) Xeon(R) Processor"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # this is not Linux
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def cache_file() -> Path:
    """Returns the path of the file with the choices of this user's machines."""
    folder = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(folder) / "fl_vitlora" / "products.json"


def read_choices() -> dict[str, str]:
    """Returns the kept choices, by description of machine and model; empty if there is no file.

    A file that cannot be read counts as no file: the program then measures again which library is
    faster.
    """
    try:
        found = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: library for name, library in found.items() if isinstance(library, str)}


def keep_choices(choices: Mapping[str, str]) -> None:
    """Writes the choices to the file. If this is impossible, the choices are not kept."""
    try:
        make_folder(cache_file().parent)
        content = json.dumps(choices, indent=1, sort_keys=True).encode()
        write_atomically(cache_file(), content)
    except (WriteError, OSError):
        return
