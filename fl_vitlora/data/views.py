"""Views: versions of the test and validation images, on which a model is evaluated.

There are four views. Three views show the test images: encrypted, encrypted with a wrong key, or
decrypted (`data.owner.views_of`). The fourth view shows the encrypted validation images, on which
no client trains.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fl_vitlora.data.holding_out import COMMON_SEED, stratified
from fl_vitlora.data.owner import RIGHT_KEY, views_of
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.rng import derive_seed

VALIDATION = "validation"


def part_of(view: str) -> str:
    """Returns the part of the images that a view shows, "validation" or "test".

    Example:
        >>> part_of(RIGHT_KEY), part_of(VALIDATION)
        ('test', 'validation')
    """
    return VALIDATION if view == VALIDATION else "test"


def seen_in(
    views: Sequence[str],
    test: Shard,
    validation: Shard | None,
    holder: KeyHolder | None,
    party: str,
) -> dict[str, Shard]:
    """Returns the images of each view; decrypts test images only if a view needs plain images.

    Args:
        views: The names of the views that are needed.
        test: The encrypted test images of a party.
        validation: The encrypted validation images of the party; None if the party has none.
        holder: The object that has the party's key; None if this process has no key.
        party: The name of the party.
    """
    seen = {RIGHT_KEY: test}
    if holder is not None and not {RIGHT_KEY, VALIDATION}.issuperset(views):
        seen = views_of(test, holder, party)
    return seen if validation is None else {**seen, VALIDATION: validation}


def sampled(shard: Shard, most: int | None, view: str) -> Shard:
    """Returns a stratified part of the images of a view; the part is the same in every round.

    Args:
        shard: All images of the view.
        most: The largest number of images to return; None for all images.
        view: The name of the view. The same images are drawn for all views of the test images.
    """
    if most is None or most >= len(shard):
        return shard
    seed = derive_seed(COMMON_SEED, "evaluated images", part_of(view))
    return shard.take(torch.from_numpy(stratified(shard.labels.numpy(), most, seed)))
