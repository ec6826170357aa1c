"""Attacks on the key of the default job; prints the share of the key that each attack finds.

python -m benchmarks.attacks ciphertext    from n ciphertexts, with other plain digits known
python -m benchmarks.attacks pairs         from n pairs of a known digit and its ciphertext
python -m benchmarks.attacks embedding     from the aggregated patch embedding of trained models
python -m benchmarks.attacks uploads       from the updates of one client, if each has its own key
python -m benchmarks.attacks blocks        from the scrambled blocks of single natural images
python -m benchmarks.attacks natural --data FOLDER    mask and order of pixels of natural images
python -m benchmarks.attacks image         labels read from images that have a key each

The program prints the mean over keys ± the standard deviation, in percent. Every key is newly
drawn, so the numbers differ a little from run to run.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.attacks import natural, photographs, trials
from benchmarks.attacks.trials import BLOCK, SHAPE, Shares
from fl_vitlora.attacks.key_search import measures
from fl_vitlora.config import DataConfig
from fl_vitlora.data import sources
from fl_vitlora.flower.simulation.engine import Engine

PIECES = ((32, 4), (112, 16))  # sides of natural images, and of their blocks
RUNS: dict[str, dict[str, Any]] = {
    "default": {},
    "secure sums": {"privacy.secure_aggregation": True},
    "noise": {"privacy.clipping_norm": 1, "privacy.noise_multiplier": 0.5},
}


def main() -> None:
    """Runs one attack on several keys, and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "attack",
        choices=["ciphertext", "pairs", "embedding", "uploads", "blocks", "natural", "image"],
    )
    parser.add_argument("--keys", type=int, help="number of keys (10; 3 if a key needs a run)")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 3, 5, 10, 100, 360])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 5, 19])
    parser.add_argument("--runs", choices=RUNS, nargs="+", default=list(RUNS))
    parser.add_argument("--data", help="data set of natural images, as --dataset names it")
    parser.add_argument("--side", type=int, default=32, help="pixels of a natural image")
    parser.add_argument("--block", type=int, default=4, help="pixels of its blocks")
    arguments = parser.parse_args()
    if arguments.attack == "natural" and not arguments.data:
        parser.error("natural: expected --data with a data set of natural images")
    runs = arguments.attack in ("embedding", "uploads")
    seeds = range(arguments.keys or (3 if runs else 10))
    if arguments.attack == "ciphertext":
        show("n", [trials.from_ciphertext(arguments.images, seed) for seed in seeds])
    elif arguments.attack == "pairs":
        show("pairs", [trials.from_pairs(arguments.images, seed) for seed in seeds])
    elif arguments.attack == "blocks":
        for side, block in PIECES:
            name = f"{side} pixels, blocks of {block}"
            show("pieces", [{name: photographs.from_blocks(side, block, s)} for s in seeds])
    elif arguments.attack == "natural":
        images, _ = sources.load(DataConfig(name=arguments.data))
        size = arguments.side, arguments.block
        trial = functools.partial(natural.from_correlations, images, *size, arguments.images)
        show(f"{size[0]} pixels, blocks of {size[1]}: n", [trial(seed) for seed in seeds])
    elif arguments.attack == "image":
        show("scope", [{"image": trials.with_key_per_image()} for _ in seeds])
    else:
        print(
            f"chance: mask {100 * measures.chance_of_mask(SHAPE[0] * BLOCK**2):.1f} %, "
            f"places {100 * measures.chance_of_places(BLOCK, up_to_mirrored=True):.1f} %"
        )
        engine = Engine(verbose=False)
        try:
            attack_runs(arguments.attack, arguments.runs, arguments.rounds, seeds, engine)
        finally:
            engine.stop()


def attack_runs(
    attack: str, runs: Sequence[str], rounds: list[int], seeds: Sequence[int], engine: Engine
) -> None:
    """Runs federations with one Ray, attacks them, and prints a table for each."""
    if attack == "uploads":
        show("rounds", [trials.from_uploads(rounds, seed, engine) for seed in seeds])
        return
    for name in runs:
        settings = RUNS[name]
        found = [trials.from_embedding(settings, rounds, seed, engine) for seed in seeds]
        show(f"{name}: rounds", found)


def show(heading: str, found: Sequence[Mapping[Any, Shares]]) -> None:
    """Prints a line for each case.

    Args:
        heading: Heading of the column of cases.
        found: For each key, the shares by case.
    """
    columns = list(next(iter(found[0].values())))
    print(f"\n| {heading} | {' | '.join(columns)} |")
    print("|--:" * (len(columns) + 1) + "|")
    for case in found[0]:
        values = [[one[case][column] for one in found] for column in columns]
        cells = [f"{100 * statistics.mean(v):.1f} ± {100 * spread(v):.1f}" for v in values]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


def spread(values: Sequence[float]) -> float:
    """Returns the sample standard deviation, or 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
