"""How much of the gradient's energy do the entries hold that SIFT trains?

python -m benchmarks.sift_energy

SIFT rests on the claim that few entries of a weight hold nearly all of the gradient. The energy of
a gradient is the sum of its squares over all adapted slices. The program runs the default job with
the method `sift`. It computes the gradient of the loss with respect to the adapted slices twice: at
the beginning of round 2, when the server has just chosen the entries, and at the beginning of the
last round. The table has the share of the energy that lies in some entries, as many in each slice
as SIFT trains:

* the entries that the server has chosen, which have changed most in round 1;
* the largest entries of the gradient of one batch, which is the rule of the paper;
* the largest entries of each gradient itself, which is the most that is possible.

The gradient of "all images" is that of all training images together; "other batches" are one batch
of each client, without the client whose batch gives the second choice of entries.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import strategies
from fl_vitlora.config import Config, load
from fl_vitlora.data.shards import CLIENT_SHARDS, Shard, open_own_shard
from fl_vitlora.experiment.preparation import prepare_model, storage_keys
from fl_vitlora.experiment.run_shards import shards_of
from fl_vitlora.experiment.runner import run
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.entries import largest
from fl_vitlora.finetuning.groups import CONTROL, exchanged_name
from fl_vitlora.finetuning.sift import DENSE, PLACES
from fl_vitlora.models.backbone import normalize
from fl_vitlora.state import State, mean

Places = Mapping[str, Tensor]  # for the tensor D of each slice, the places of the chosen entries


class Models:
    """An observer that keeps what the server has sent, and the mean change of round 1.

    Attributes:
        sent: The models that the server has sent, by round.
        change: The mean of the dense changes D of round 1, from which the server chooses.
    """

    def __init__(self) -> None:
        self.sent: dict[int, State] = {}
        self.change: State = {}

    def observe(self, sight: Sight) -> None:
        """Keeps the model of a round."""
        self.sent[sight.round] = sight.model
        if sight.round == 1:
            images = [one.samples for one in sight.updates]
            whole = mean([one.delta for one in sight.updates], images)
            self.change = {name: t for name, t in whole.items() if name.endswith(DENSE)}


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradients of one model with respect to its adapted slices.

    Attributes:
        whole: The gradient of the mean loss of all training images, by slice.
        batches: The gradient of one batch of each client, by slice.
    """

    whole: State
    batches: Sequence[State]


def slice_gradients(model: Any, shard: Shard) -> State:
    """Returns the sum of the gradients of all images with respect to the adapted slices.

    The gradient with respect to the dense change D is the gradient with respect to the weight.
    """
    model.zero_grad()
    logits = model(normalize(shard.images))
    torch.autograd.backward(F.cross_entropy(logits, shard.labels, reduction="sum"))
    found = {}
    for name, parameter in methods.trainable(model).items():
        if name.endswith(DENSE):
            assert parameter.grad is not None
            found[name] = parameter.grad.double()
    return found


def gradients_at(model: Any, state: State, shards: Sequence[Shard], images: int) -> Gradients:
    """Computes the gradients of a model with the given tensors.

    Args:
        model: The prepared model, whose tensors are overwritten.
        state: The trained tensors.
        shards: The encrypted images of each client.
        images: The number of images of a batch.
    """
    methods.load_state(model, state)
    model.eval()
    whole: State = {}
    for part in pieces(shards):
        for name, gradient in slice_gradients(model, part).items():
            whole[name] = whole.get(name, 0) + gradient
    batches = [slice_gradients(model, shard.take(torch.arange(images))) for shard in shards]
    return Gradients(whole=whole, batches=batches)


def pieces(shards: Sequence[Shard]) -> Iterator[Shard]:
    """Yields all images in pieces that fit into the cache of a core."""
    for shard in shards:
        for positions in torch.split(torch.arange(len(shard)), 64):
            yield shard.take(positions)


def share(gradients: State, places: Places) -> float:
    """Returns the share of the energy of a gradient that lies at the given places."""
    held = sum(float(g.flatten()[places[n]].square().sum()) for n, g in gradients.items())
    return held / sum(float(gradient.square().sum()) for gradient in gradients.values())


def chosen_by_sift(state: State) -> Places:
    """Returns the places that the server has chosen."""
    slices = [name.removesuffix(DENSE) for name in state if name.endswith(DENSE)]
    return {name + DENSE: state[exchanged_name(name + PLACES, CONTROL)].long() for name in slices}


def largest_of(gradients: State, like: Places) -> Places:
    """Returns the places of the largest entries, as many in each slice as other places are."""
    return {name: largest(g, len(like[name])) for name, g in gradients.items()}


def rows(found: Gradients, chosen: Places) -> Mapping[str, tuple[float, float]]:
    """Returns for each choice of entries the shares of all images and of other batches."""
    first, *others = found.batches
    of_batch = largest_of(first, chosen)

    def shares(places: Places) -> tuple[float, float]:
        return share(found.whole, places), statistics.mean(share(g, places) for g in others)

    own = statistics.mean(share(g, largest_of(g, chosen)) for g in found.batches)
    return {
        "chosen by SIFT": shares(chosen),
        "largest of one batch": shares(of_batch),
        "largest of the gradient itself": (
            share(found.whole, largest_of(found.whole, chosen)),
            own,
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of a run.

    Attributes:
        trained: The share of the entries that SIFT trains.
        change: The share of the energy of the mean change of round 1 that these entries hold.
        rows: The rows of the table, by round.
    """

    trained: float
    change: float
    rows: Mapping[int, Mapping[str, tuple[float, float]]]


def measured(config: Config) -> Measured:
    """Runs a job, and computes the gradients of two of its models."""
    models, strategy = Models(), strategies.load_for(config)
    _, folder = run(config, strategy, observers=[models])
    keys = storage_keys(config)
    names = shards_of(folder, keys).class_names
    paths = sorted((folder / "shards").glob(CLIENT_SHARDS))
    shards = [open_own_shard(path, names, keys) for path in paths]
    model = prepare_model(config, len(names), "cpu").model
    places = chosen_by_sift(models.sent[config.rounds])
    entries = sum(change.numel() for change in models.change.values())
    size = config.training.batch_size
    found = {
        number: rows(gradients_at(model, models.sent[number], shards, size), places)
        for number in (2, config.rounds)
    }
    return Measured(
        trained=sum(map(len, places.values())) / entries,
        change=share(models.change, places),
        rows=found,
    )


def main() -> None:
    """Runs the job, and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=["q", "v"], help="the adapted slices")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            None,
            {
                "finetuning.method": "sift+patch_embed",
                "finetuning.targets": arguments.targets,
                "rounds": arguments.rounds,
                "seed": arguments.seed,
                "encryption.key_file": str(Path(folder) / "owner.key"),
                "out": str(Path(folder) / "run"),
            },
        )
        found = measured(config)
    print(f"{100 * found.trained:.2f} % of the entries are trained.")
    print(f"They hold {100 * found.change:.1f} % of the energy of the mean change of round 1.")
    print("\n| share of the energy, % | round | all images | other batches |\n|---|--:|--:|--:|")
    for number, own in found.rows.items():
        for name, (whole, batches) in own.items():
            print(f"| {name} | {number} | {100 * whole:.1f} | {100 * batches:.1f} |")


if __name__ == "__main__":
    main()
