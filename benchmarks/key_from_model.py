"""Measures how much of its key a trained model reveals to an attacker with models of its own.

python benchmarks/key_from_model.py --runs ENCRYPTED_RUN [...] --plain PLAIN_RUN [...]

The attacker sees the patch embedding of a run on encrypted images, and knows the public model. The
attacker has also trained models on plain images of the same kind (the plain runs). The attack
matches the columns of the patch embeddings, or of their changes in training, one to one by the
absolute value of their cosine (Hungarian method). The program prints the share of entries of a
block whose origin is found, and the share whose place within the block is found, in any channel.
The program also prints both shares by chance. The true key comes from the owner's key ring.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from fl_vitlora import config as configuration
from fl_vitlora.attacks.key_search.from_columns import matched
from fl_vitlora.data.owner import key_holder
from fl_vitlora.data.shards import TEST_SHARD, shard_metadata
from fl_vitlora.encryption.holder import TEST
from fl_vitlora.encryption.keys import open_ring
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.models import backbone
from fl_vitlora.models.reading import WEIGHT, reader_of

STEP = "pixel_shuffling"


def patch_embedding(run: Path) -> Tensor:
    """Returns the trained patch embedding of a run, (width W, entries of a patch D)."""
    weight: Tensor = load_file(run / "model.safetensors")[WEIGHT]
    return weight.flatten(1)


def shares(run: Path, plain: Iterable[Path]) -> dict[str, tuple[float, float]]:
    """Attacks one run in every way, and returns the shares of entries and places found by each."""
    config = configuration.load(str(run / "config.yaml"))
    public = backbone.build(config.model, 2, config.seed)
    told = shard_metadata(run / "shards" / TEST_SHARD, storage_keys(config))
    holder = key_holder(
        config,
        patch_size=public.patch_size,
        image_shape=public.image_shape,
        secret=open_ring(Path(config.encryption.key_file)).find(told["key_id"]),
    )
    truth = holder.key(TEST)[STEP]
    pixels = public.patch_size**2
    origin, seen = reader_of(public).weight, patch_embedding(run)
    attacks = {"final, public model": [(seen, origin)]}
    trained = [patch_embedding(path) for path in plain]
    attacks["final, own models"] = [(seen, own) for own in trained]
    attacks["change, own models"] = [(seen - origin, own - origin) for own in trained]
    found = {}
    for attack, pairs in attacks.items():
        guesses = [matched(a, b)[0] for a, b in pairs]
        entries = statistics.mean(float((g == truth).float().mean()) for g in guesses)
        places = statistics.mean(
            float((g % pixels == truth % pixels).float().mean()) for g in guesses
        )
        found[attack] = (entries, places)
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--plain", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()
    found = [shares(run, arguments.plain) for run in arguments.runs]
    entries = patch_embedding(arguments.runs[0]).shape[1]
    print(f"chance: entries {100 / entries:.1f} %, places {300 / entries:.1f} %")
    print(f"{'compared':<22} {'entries found %':>22} {'places found %':>22}")
    for attack in found[0]:
        cells = []
        for which in (0, 1):
            values = [100 * run[attack][which] for run in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        print(f"{attack:<22} {cells[0]:>22} {cells[1]:>22}")


if __name__ == "__main__":
    main()
