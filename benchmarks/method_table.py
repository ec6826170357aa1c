"""One row for each fine-tuning method: what it trains and sends, and what averaging does to it.

Nothing is trained. The model is the bundled one with random weights and the head of ten classes;
the low-rank matrices have rank 4 on q and v, unless other settings are given. The gap compares two
clients with random tensors: it is the distance between the weights of the averaged tensors and the
average of the clients' weights, divided by the distance between this average and the pre-trained
weights.

python -m benchmarks.method_table
"""

from __future__ import annotations

import argparse

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.config.schema import Adapted
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.finetuning.groups import HEAD, group_of
from fl_vitlora.state import count
from fl_vitlora.testing.method_clients import gap_of
from fl_vitlora.testing.method_subject import Subject

BYTES = 4  # of a number in float32
NOISE = 1e-9  # a smaller gap is rounding in float64


def row(name: str, targets: tuple[Adapted, ...]) -> str:
    """Returns the row of a part in Markdown.

    Args:
        name: The name of the part.
        targets: The slices that the part adapts, if it adapts slices.
    """
    method = shelf.method_of(FineTuningConfig(method=name, targets=targets))
    subject = Subject(method=method)
    state = methods.export_state(subject.prepared().model)
    sent = {n: t for n, t in state.items() if not n.endswith(method.personal)}
    first = method.resting(1, {}, state) if method.has_rests else ()
    moving = {n: t for n, t in sent.items() if not n.endswith(first)}
    body = {n: t for n, t in moving.items() if group_of(n) != HEAD}
    merges = not any(part.cannot_merge for _, part in method.parts)
    gap = gap_of(subject) if merges else None
    told = "no weights" if gap is None else "exact" if gap < NOISE else f"{100 * gap:.2g} %"
    cells = (
        f"`{name}`",
        f"{count(body):,}",
        f"{BYTES * count(moving):,}",
        told,
        "yes" if merges else "no",
        "yes" if method.stackable else "no",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", nargs="+", default=["q", "v"], help="slices of a block")
    targets = tuple(parser.parse_args().targets)
    print(
        "| method | trained in round 1, without the head | bytes of an update in round 1 | "
        "averaging | merges | clients share a batch |"
    )
    print("|---|--:|--:|--:|---|---|")
    for name in PARTS:
        print(row(name, targets))


if __name__ == "__main__":
    main()
