"""Weights are a model's own, or refused by the names of what differs; six architectures of timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from timm.models.beit import Beit
from timm.models.beit import checkpoint_filter_fn as filter_beit
from timm.models.cait import Cait
from timm.models.cait import checkpoint_filter_fn as filter_cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as filter_eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn as filter_vit
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.models.fitting import fit
from fl_vitlora.models.misfit import Convert, beside

SMALL: Mapping[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 0,
}
MODELS: Mapping[str, tuple[type[nn.Module], Mapping[str, Any], Convert]] = {
    "vit": (VisionTransformer, {}, filter_vit),
    "deit distilled": (VisionTransformerDistilled, {}, filter_vit),
    "deit3": (VisionTransformer, {"no_embed_class": True, "init_values": 1e-6}, filter_vit),
    "dinov2": (VisionTransformer, {"init_values": 1e-5, "reg_tokens": 4}, filter_vit),
    "beit": (
        Beit,
        {"init_values": 0.1, "use_abs_pos_emb": False, "use_rel_pos_bias": True},
        filter_beit,
    ),
    "eva02": (
        Eva,
        {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False},
        filter_eva,
    ),
    "cait": (Cait, {"depth_token_only": 1}, filter_cait),
}


@cache
def make(name: str) -> nn.Module:
    kind, arguments, _ = MODELS[name]
    return kind(**SMALL, **arguments)


def weights(name: str) -> dict[str, Tensor]:
    """Returns other numbers than the model has, under the names and shapes that it has."""
    torch.manual_seed(0)
    return {n: torch.randn_like(tensor) for n, tensor in make(name).state_dict().items()}


def put(name: str, tensors: Mapping[str, Tensor], **options: Any) -> tuple[str, ...]:
    return fit(make(name), tensors, name=name, where="FILE", convert=MODELS[name][2], **options)


def refused(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Returns why weights are refused, and checks that the model kept its own."""
    before = {n: tensor.clone() for n, tensor in make(name).state_dict().items()}
    with pytest.raises(UserError) as caught:
        put(name, tensors)
    assert all(torch.equal(before[n], tensor) for n, tensor in make(name).state_dict().items())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kinds(name: str) -> list[str]:
    """Lists one tensor of each kind: those of the last block stand for all blocks."""
    seen = {re.sub(r"\d+", "N", tensor): tensor for tensor in make(name).state_dict()}
    return list(seen.values())


every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_weights_of_the_model_itself_are_put_into_it_to_the_bit(name: str):
    own = weights(name)
    assert put(name, own) == ()
    assert all(torch.equal(tensor, own[n]) for n, tensor in make(name).state_dict().items())


@every_model
def test_every_tensor_that_lacks_is_named(name: str):
    own = weights(name)
    for lost in kinds(name):
        message = refused(name, {n: tensor for n, tensor in own.items() if n != lost})
        assert f"1 tensor ({lost}) missing" in message


@every_model
def test_every_tensor_too_many_is_named(name: str):
    own = weights(name)
    for known in kinds(name):
        extra = f"{known}_extra" if "." not in known else re.sub(r"(\w+)$", r"other.\1", known)
        message = refused(name, {**own, extra: own[known]})
        assert f"1 tensor ({extra}) not used" in message


@every_model
def test_every_tensor_of_another_name_is_told_with_both_names(name: str):
    own = weights(name)
    for known in kinds(name):
        other = f"{known}x"
        message = refused(name, {(other if n == known else n): t for n, t in own.items()})
        assert f"({known}) missing" in message
        assert f"({other}) not used" in message
        assert f"most similar to {known} is {other}" in message


@every_model
def test_every_tensor_of_another_shape_is_named(name: str):
    own = weights(name)
    for known in kinds(name):
        if known in ("pos_embed", "patch_embed.proj.weight"):  # these may be resampled
            continue
        wrong = torch.cat([own[known], own[known]], dim=-1)
        assert known in refused(name, {**own, known: wrong})


@every_model
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_every_tensor_that_is_not_finite_is_named(name: str, number: float):
    own = weights(name)
    for known in kinds(name):
        broken = own[known].clone()
        broken.view(-1)[-1] = number
        assert f"NaN or infinity in 1 tensor ({known})" in refused(name, {**own, known: broken})


@every_model
@pytest.mark.parametrize("prefix", ["blocks.2.", "blocks.5.", "blocks.12."])
def test_a_deeper_model_is_refused(name: str, prefix: str):
    own = weights(name)
    more = {prefix + n[9:]: tensor for n, tensor in own.items() if n.startswith("blocks.1.")}
    assert f"{len(more)} tensors ({prefix}" in refused(name, {**own, **more})


def test_layer_scale_is_not_dropped():
    """Weights of a model with LayerScale work at chance without it."""
    own, other = weights("vit"), weights("deit3")
    scales = {n: tensor for n, tensor in other.items() if ".ls" in n}
    message = refused("vit", {**own, **scales})
    assert "4 tensors (blocks.0.ls1.gamma, blocks.0.ls2.gamma, blocks.1.ls1.gamma, ...)" in message
    assert "4 tensors (blocks.0.ls1.gamma" in refused("deit3", own)


BESIDE = {
    "head.weight": "a head",
    "head_dist.bias": "a head",
    "fc.weight": "a head",
    "classifier.weight": "a head",
    "dino_head.mlp.0.weight": "a head",
    "ibot_head.last_layer.weight_v": "a head",
    "mask_token": "a mask token",
    "decoder_embed.weight": "a decoder",
    "decoder_blocks.0.attn.qkv.weight": "a decoder",
    "decoder_pos_embed": "a decoder",
    "logit_scale": "a text encoder",
}


@pytest.mark.parametrize("extra", BESIDE)
def test_what_pre_training_alone_uses_is_left_out_with_a_note(extra: str):
    (note,) = put("vit", {**weights("vit"), extra: torch.ones(2)})
    assert note == f"weights FILE: {BESIDE[extra]} in the file was ignored"
    assert beside(extra) == BESIDE[extra]


@pytest.mark.parametrize("extra", ["blocks.0.head.weight", "blocks.1.fc.bias", "heading", "norm2"])
def test_what_only_sounds_like_a_head_is_refused(extra: str):
    assert extra in refused("vit", {**weights("vit"), extra: torch.ones(2)})


@pytest.mark.parametrize(
    "extra", ["foo.attn_mask", "blocks.0.attn.relative_position_index", "rope.periods"]
)
def test_what_other_models_compute_is_refused_too(extra: str):
    assert extra in refused("vit", {**weights("vit"), extra: torch.ones(2)})


def test_what_a_filter_overwrites_is_refused():
    """A file with a tensor under its old and its new name holds one too many."""
    own = weights("dinov2")
    twice = {**own, "mask_token": torch.zeros(1), "blocks.0.mlp.w3.bias": own["norm.bias"] + 1}
    assert "blocks.0.mlp" in refused("dinov2", twice)


def test_a_pooling_head_is_left_out_only_where_timm_does_so():
    more = {**weights("vit"), "attn_pool.q.weight": torch.ones(2)}
    assert "attn_pool.q.weight" in refused("vit", more)
    assert put("vit", more, pooling=True) == (
        "weights FILE: a pooling head in the file was ignored",
    )


def test_tensors_that_share_memory_are_told_apart():
    """Files map all tensors from one storage: what is lost among them is found all the same."""
    own = weights("deit distilled")
    flat = torch.cat([tensor.flatten() for tensor in own.values()])
    sizes = [tensor.numel() for tensor in own.values()]
    views = {n: part.view_as(own[n]) for n, part in zip(own, flat.split(sizes), strict=True)}
    assert put("deit distilled", views) == ()
    assert "blocks.0.pre_logits" in refused(
        "deit distilled", {**views, "blocks.0.pre_logits": flat[:0].new_ones(3)}
    )


def test_a_distillation_token_is_left_out_where_the_model_has_none():
    own = weights("deit distilled")
    (note,) = put("vit", own)
    assert "distillation token" in note
    placed = make("vit").state_dict()["pos_embed"]
    assert torch.equal(placed[:, 0], own["pos_embed"][:, 0])
    assert torch.equal(placed[:, 1:], own["pos_embed"][:, 2:])
    assert "dist_token" in refused("deit distilled", weights("vit"))


WRAPPERS = [
    "model.",
    "state_dict.",
    "model_state_dict.",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "teacher.backbone.",
    "student.backbone.",
    "state_dict.model.",
    "model.module.",
    "model_ema.",
    "state_dict_ema.",
    "state_dict.teacher.backbone.",
    "net.trunk.",
]


@every_model
def test_common_wrappers_are_taken_off(name: str):
    own = weights(name)
    for wrapper in WRAPPERS:
        assert put(name, {wrapper + n: tensor for n, tensor in own.items()}) == ()
        assert torch.equal(make(name).state_dict()["cls_token"], own["cls_token"])
        lost = {wrapper + n: tensor for n, tensor in own.items() if n != "cls_token"}
        assert "1 tensor (cls_token) missing" in refused(name, lost)


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("teacher.backbone.", "student.backbone."),
        ("state_dict.teacher.", "state_dict.student."),
        ("model_ema.", "model."),
        ("state_dict_ema.", "state_dict."),
        ("ema_state_dict.", "model."),
        ("ema.", ""),
    ],
)
def test_of_two_copies_it_is_told_which_was_taken(taken: str, left: str):
    own, other = weights("vit"), {n: t + 1 for n, t in weights("vit").items()}
    both = {**{left + n: t for n, t in other.items()}, **{taken + n: t for n, t in own.items()}}
    (note,) = put("vit", both)
    assert f"weights FILE ({taken}*): these tensors were used, and" in note
    assert torch.equal(make("vit").state_dict()["norm.weight"], own["norm.weight"])


def test_copies_that_nothing_distinguishes_are_refused():
    own, other = weights("vit"), {n: t + 1 for n, t in weights("vit").items()}
    both = {**{f"a.{n}": t for n, t in own.items()}, **{f"b.{n}": t for n, t in other.items()}}
    assert "contain several models, a. and b." in refused("vit", both)
    put("vit", {**both, **{f"b.{n}": t for n, t in own.items()}})  # both say the same


def test_the_state_of_a_training_is_no_part_of_a_model():
    own = {f"model.{n}": tensor for n, tensor in weights("vit").items()}
    more = {"optimizer.state.0.exp_avg": torch.ones(2), "epoch": torch.tensor(3)}
    assert put("vit", {**own, **more}) == ()
    assert "neck.weight" in refused("vit", {**own, "neck.weight": torch.ones(2)})


def test_names_of_other_houses_are_converted_by_timm():
    """DINOv2 of its authors: register tokens, and a position for the class token alone."""
    kind = VisionTransformer(**{**SMALL, "no_embed_class": True}, init_values=1e-5, reg_tokens=4)
    torch.manual_seed(0)
    own = {n: torch.randn_like(tensor) for n, tensor in kind.state_dict().items()}
    theirs = {n: tensor for n, tensor in own.items() if n != "reg_token"}
    theirs |= {"register_tokens": own["reg_token"], "mask_token": torch.zeros(1, 24)}
    first = torch.randn(1, 1, 24)
    theirs["pos_embed"] = torch.cat([first, own["pos_embed"]], dim=1)
    theirs["cls_token"] = own["cls_token"] - first
    put_in = {f"teacher.backbone.{n}": tensor for n, tensor in theirs.items()}
    fit(kind, put_in, name="dinov2", where="FILE", convert=filter_vit)
    for n, tensor in kind.state_dict().items():
        assert torch.allclose(tensor, own[n], atol=1e-6), n
    with pytest.raises(UserError, match=r"\(reg_token\) missing"):
        fit(
            kind,
            {n: t for n, t in theirs.items() if n != "register_tokens"},
            name="dinov2",
            where="FILE",
            convert=filter_vit,
        )


@every_model
def test_positions_are_resampled_to_another_grid_and_patches_only_if_asked(name: str):
    own = weights(name)
    if "pos_embed" in own and name != "cait":
        prefix = own["pos_embed"].shape[1] - 16
        larger = torch.cat([own["pos_embed"][:, :prefix], torch.randn(1, 36, 24)], dim=1)
        (note,) = put(name, {**own, "pos_embed": larger})
        assert "position embedding was resampled" in note
        assert put(name, {**own, "pos_embed": larger}, new_grid=True) == ()
    if name != "cait":
        patches = {**own, "patch_embed.proj.weight": torch.randn(24, 3, 8, 8)}
        assert "made for patches of 8 pixels, expected 4" in refused(name, patches)
        assert put(name, patches, new_patches=True) == ()


def test_halves_are_read_and_whole_numbers_are_not():
    own = weights("vit")
    put("vit", {n: tensor.half() for n, tensor in own.items()})
    assert make("vit").state_dict()["norm.weight"].dtype == torch.float32
    assert "norm.weight has type torch.int8" in refused(
        "vit", {**own, "norm.weight": own["norm.weight"].to(torch.int8)}
    )
