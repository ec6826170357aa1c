"""What a model is evaluated on: the right images, and in every round the same."""

from __future__ import annotations

import pytest
import torch

from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, WRONG_KEY
from fl_vitlora.data.shards import Shard
from fl_vitlora.data.views import VALIDATION, sampled, seen_in
from tests.data.digit_shards import holder_of

IMAGES = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1).expand(20, 3, 16, 16).contiguous()
SHARD = Shard(images=IMAGES, labels=torch.arange(20) % 4)


def test_some_images_are_drawn_once_and_with_equal_shares():
    few = sampled(SHARD, 8, RIGHT_KEY)
    assert torch.bincount(few.labels).tolist() == [2, 2, 2, 2]
    assert torch.equal(few.labels, few.images[:, 0, 0, 0].long() % 4)
    assert torch.equal(sampled(SHARD, 8, RIGHT_KEY).images, few.images)
    assert torch.equal(sampled(SHARD, 8, WRONG_KEY).images, few.images)


@pytest.mark.parametrize("most", [None, 20, 1000])
def test_all_images_are_the_shard_itself(most: int | None):
    assert sampled(SHARD, most, VALIDATION) is SHARD


def test_images_are_decrypted_only_if_a_view_needs_it():
    """The test shard could be large, and validation images are seen under the right key alone."""
    holder, held = holder_of(steps="EtC"), sampled(SHARD, 4, VALIDATION)
    plain = seen_in((VALIDATION, RIGHT_KEY), SHARD, held, holder, "test")
    assert plain == {RIGHT_KEY: SHARD, VALIDATION: held}
    every = seen_in((VALIDATION, RIGHT_KEY, NO_KEY), SHARD, held, holder, "test")
    assert set(every) == {RIGHT_KEY, WRONG_KEY, NO_KEY, VALIDATION}
    assert every[VALIDATION] is held
    assert seen_in((RIGHT_KEY,), SHARD, None, None, "test") == {RIGHT_KEY: SHARD}
