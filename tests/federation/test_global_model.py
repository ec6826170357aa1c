"""A model that was stored in a file can be evaluated again."""

from __future__ import annotations

import torch

from fl_vitlora.federation.global_model import GlobalModel


def test_a_stored_model_has_its_tensors_and_its_increments_again():
    torch.manual_seed(0)
    model = GlobalModel(tensors={"head.weight": torch.randn(2, 3), "p.lora_A": torch.randn(1, 4)})
    for _ in range(2):
        merged = {"p.merged_A": torch.randn(1, 4), "p.merged_B": torch.randn(3, 1)}
        model = model.followed_by(model.tensors, merged)
    again = GlobalModel.of_stored(model.stored())
    for own, other in (
        (model.tensors, again.tensors),
        (model.increments, again.increments),
    ):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)
