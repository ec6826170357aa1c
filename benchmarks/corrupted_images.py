"""Accuracy on corrupted test images, with and without test-time adaptation.

python -m benchmarks.corrupted_images --seeds 0 1 2 3 4
python -m benchmarks.corrupted_images --run RUN_FOLDER [RUN_FOLDER ...]

The images are corrupted as a bad camera would do it, before their owner encrypts them: by noise, by
blur, or by low contrast, in severities from 1 to 5. The program evaluates the models of one or more
runs with each predictor, and prints one table of the mean accuracies over the runs, with their
standard deviations. The method of the runs must contain `feature_statistics`. Without run folders,
the program first makes a run with the default settings for each seed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora import config as configuration
from fl_vitlora.adaptation import coordinates
from fl_vitlora.config.predictor_names import PREDICTORS
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, views_of
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.experiment.measuring import measured_by_server
from fl_vitlora.experiment.preparation import (
    prepare_holder,
    prepare_model,
    storage_keys,
)
from fl_vitlora.experiment.run_shards import shards_of
from fl_vitlora.experiment.server_model import make_server
from fl_vitlora.federation.evaluation import CentralEvaluator
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.rng import generator
from fl_vitlora.training.prediction import predictor_of

ROOT = Path(__file__).resolve().parent.parent
Rows = dict[str, list[float]]  # one accuracy of each predictor, in the order of PREDICTORS
METHOD = "lora+patch_embed+feature_statistics"
NOISE = (0.0, 0.08, 0.12, 0.18, 0.26, 0.38)  # standard deviations, as shares of white
BLUR = (0.0, 0.4, 0.6, 0.8, 1.0, 1.5)  # standard deviations of the kernel, in pixels
CONTRAST = (1.0, 0.6, 0.4, 0.3, 0.2, 0.1)  # the shares of the contrast that are left


def noisy(images: Tensor, severity: int) -> Tensor:
    """Returns images in [0, 1], (B, C, H, W), with Gaussian noise."""
    draw = generator(0, "corruption", severity)
    return images + NOISE[severity] * torch.randn(images.shape, generator=draw)


def blurred(images: Tensor, severity: int) -> Tensor:
    """Returns images in [0, 1], (B, C, H, W), after a Gaussian filter."""
    places = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-places.square() / (2 * BLUR[severity] ** 2))
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (4, 4, 4, 4), mode="replicate")
    rows = F.conv2d(padded, kernel, groups=images.shape[1])
    return F.conv2d(rows, kernel.mT, groups=images.shape[1])


def flattened(images: Tensor, severity: int) -> Tensor:
    """Returns images in [0, 1], (B, C, H, W), with less contrast around their means."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + CONTRAST[severity] * (images - mean)


CORRUPTIONS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "noise": noisy,
    "blur": blurred,
    "contrast": flattened,
}


def corrupted(plain: Tensor, corruption: str, severity: int) -> Tensor:
    """Returns corrupted images, uint8 (B, C, H, W)."""
    images = CORRUPTIONS[corruption](plain.float() / 255, severity)
    return (255 * images).round().clamp(0, 255).to(torch.uint8)


def opened(run: Path) -> tuple[CentralEvaluator, KeyHolder, GlobalModel]:
    """Returns the evaluator of a run, the holder of its key, and its last model."""
    config = configuration.load(str(run / "config.yaml"))
    keys = storage_keys(config)
    known = shards_of(run, keys)
    built = prepare_model(config, len(known.class_names), "cpu")
    holder = prepare_holder(config, built, known.key)
    server = make_server(built, lambda origin: coordinates.server_reader(config, origin, holder))
    evaluator = measured_by_server(
        config,
        server,
        holder=holder,
        shards=run / "shards",
        class_names=known.class_names,
        storage=keys,
    )
    stored = load_file(run / "model.safetensors")
    return evaluator, holder, GlobalModel(tensors={name: stored[name] for name in server.initial})


def accuracies(evaluator: CentralEvaluator, model: GlobalModel, encrypted: Tensor) -> list[float]:
    """Returns the accuracy of each predictor on encrypted images."""
    shard = replace(evaluator.shard, images=encrypted)
    found = []
    for name in PREDICTORS:
        own = replace(evaluator, shard=shard, predictor=predictor_of(name))
        found.append(own.measure(0, model, (RIGHT_KEY,))[RIGHT_KEY][0])
    return found


def shares(run: Path) -> Rows:
    """Returns the accuracies of the model of a run, in [0, 1]: a row for each kind of images."""
    evaluator, holder, model = opened(run)
    plain = views_of(evaluator.shard, holder, TEST)[NO_KEY].images
    rows = {"clean": accuracies(evaluator, model, evaluator.shard.images)}
    for corruption in CORRUPTIONS:
        for severity in range(1, 6):
            images = corrupted(plain, corruption, severity)
            encrypted = holder.encrypt(images, TEST, "test")
            rows[f"{corruption} {severity}"] = accuracies(evaluator, model, encrypted)
        columns = zip(*(rows[f"{corruption} {severity}"] for severity in range(1, 6)), strict=True)
        rows[f"{corruption} mean"] = [sum(column) / 5 for column in columns]
    return rows


def report(runs: Sequence[Path]) -> None:
    """Prints the table of some runs: means and standard deviations in per cent."""
    found = [shares(run) for run in runs]
    print(f"{'accuracy in %':16}" + "".join(f"{name:>19}" for name in PREDICTORS))
    for label in found[0]:
        columns = zip(*(rows[label] for rows in found), strict=True)
        print(f"{label:16}" + "".join(f"{cell(column):>19}" for column in columns))


def cell(values: Sequence[float]) -> str:
    """Returns the mean of some shares in per cent, with the standard deviation if it has one.

    Example:
        >>> cell([0.91, 0.93]), cell([0.5])
        ('92.0 ± 1.4', '50.0')
    """
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def main() -> None:
    """Reads the command line, makes the runs if none are given, and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--run", type=Path, nargs="+", help="Folders of finished runs. Default: new runs."
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="Seeds of the new runs. Default: 0."
    )
    given = parser.parse_args()
    if given.run is not None:
        report(given.run)
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / f"run{seed}" for seed in given.seeds]
        for seed, run in zip(given.seeds, runs, strict=True):
            command = [sys.executable, "simulate.py", "--clients", "20", "--method", METHOD]
            command += ["--seed", str(seed), "--out", str(run)]
            subprocess.run(command, cwd=ROOT, check=True)
        report(runs)


if __name__ == "__main__":
    main()
