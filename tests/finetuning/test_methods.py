"""Fine-tuning methods: what is trained, exchanged and merged; table-driven over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, targets
from fl_vitlora.finetuning.lora import LoRALinear
from fl_vitlora.state import State, count
from tests.conftest import MakeBackbone, random_vit

METHODS = sorted(methods.METHODS)
GROUPS = {
    "lora+patch_embed": {"lora", "patch_embed", "head"},
    "lora": {"lora", "head"},
    "head": {"head"},
    "full": {"patch_embed", "head", "body"},
}
SUBSETS = [chosen for n in (1, 2, 6) for chosen in combinations(targets.LAYERS, n)]

every_method = pytest.mark.parametrize("method", METHODS)


def randomize(model: nn.Module) -> None:
    """Moves all trained tensors, B of LoRA too."""
    torch.manual_seed(1)
    for parameter in methods.trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)


def some_images() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 16 * 16, dtype=torch.float64).reshape(2, 3, 16, 16).sin()


@pytest.fixture(scope="module")
def vit_base() -> Iterator[State]:
    """Names and shapes of ViT-B/16 with ten classes, without memory for its numbers."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=10)
    yield {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("method", "rank", "trained"),
    [
        ("full", 4, 85_806_346),
        ("lora", 4, 155_146),
        ("lora+patch_embed", 4, 745_738),
        ("head", 4, 7_690),
        ("lora", 8, 302_602),
        ("lora+patch_embed", 1, 635_146),
    ],
)
def test_vit_base_trains_as_many_numbers_as_the_paper_says(method: str, rank: int, trained: int):
    """LoRA on q and v: 12 blocks · 2 · r · (768 + 768); E: 590,592; head: 7,690."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=10)
    model.requires_grad_(requires_grad=False)
    with torch.device("meta"):
        methods.prepare(model, FineTuningConfig(method=method, rank=rank), 0)
    assert count(methods.trainable(model)) == trained


def test_the_message_is_smaller_than_the_model_as_facts_say(vit_base: State):
    assert count(vit_base) == 85_806_346
    assert count(vit_base) / 745_738 == pytest.approx(115, abs=0.1)


@every_method
def test_training_starts_at_the_pretrained_function(method: str, make_backbone: MakeBackbone):
    plain = random_vit().model.double()
    adapted = make_backbone(method=method).model.double()
    assert torch.equal(adapted(some_images()), plain(some_images()))
    assert float(plain(some_images()).std()) > 0.1


@pytest.mark.parametrize("chosen", SUBSETS, ids="+".join)
def test_merged_computes_the_same_as_adapted(chosen: tuple[str, ...], make_backbone: MakeBackbone):
    built = make_backbone(targets=chosen, rank=3)
    randomize(built.model)
    model = built.model.double()
    before = model(some_images())
    methods.merge(model)
    assert torch.allclose(model(some_images()), before, atol=1e-12, rtol=0)
    assert not any(methods.group_of(name) == methods.LORA for name, _ in model.named_parameters())


@every_method
def test_a_merged_model_is_a_plain_timm_model(method: str, make_backbone: MakeBackbone):
    model = make_backbone(method=method).model
    randomize(model)
    adapted = model.double()(some_images())
    methods.merge(model)
    plain = random_vit(seed=5).model.double()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(some_images()), adapted, atol=1e-12, rtol=0)


@every_method
def test_a_method_trains_its_groups_and_nothing_else(method: str, make_backbone: MakeBackbone):
    model = make_backbone(method=method).model
    trained = methods.trainable(model)
    groups = GROUPS[method]
    assert {methods.group_of(name) for name in trained} == groups
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert not {methods.group_of(name) for name in frozen} & groups
    assert list(trained) == [name for name, _ in model.named_parameters() if name in trained]


@every_method
def test_every_trained_tensor_gets_a_gradient(method: str, make_backbone: MakeBackbone):
    built = make_backbone(method=method)
    methods.check_gradients(built.model, built.image_shape)
    assert all(parameter.grad is None for parameter in built.model.parameters())


@every_method
def test_loading_what_was_exported_changes_nothing(method: str, make_backbone: MakeBackbone):
    model = make_backbone(method=method).model
    randomize(model)
    state = methods.export_state(model)
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in state.values())
    other = make_backbone(method=method, seed=0).model
    methods.load_state(other, state)
    assert all(torch.equal(state[n], t) for n, t in methods.export_state(other).items())
    state["head.bias"] += 1  # an export is a copy
    assert torch.equal(methods.export_state(other)["head.bias"] + 1, state["head.bias"])


def test_a_state_of_other_names_or_shapes_is_refused(make_backbone: MakeBackbone):
    model = make_backbone(method="head").model
    state = methods.export_state(model)
    with pytest.raises(ValueError, match=r"unknown: \['head\.bias'\]"):
        methods.load_state(model, {"head.weight": state["head.weight"]})
    with pytest.raises(ValueError, match=r"unknown: \['extra'\]"):
        methods.load_state(model, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"head\.bias: expected shape \(10,\), got \(3,\)"):
        methods.load_state(model, {**state, "head.bias": torch.zeros(3)})


def test_the_initial_a_is_that_of_the_seed(make_backbone: MakeBackbone):
    name = "blocks.0.attn.qkv.adapters.q.lora_A"
    draws = [methods.trainable(make_backbone(seed=s).model)[name] for s in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_plain_model_exchanges_all_but_the_adapters(make_backbone: MakeBackbone):
    model = make_backbone(method="lora").model
    plain = random_vit().model
    assert count(methods.plain_parameters(model)) == sum(p.numel() for p in plain.parameters())


def small_beit() -> nn.Module:
    model: nn.Module = Beit(
        img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=3
    )
    return model


def small_eva() -> nn.Module:
    model: nn.Module = Eva(
        img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2, num_classes=3, qkv_fused=True
    )
    return model


def small_swin() -> nn.Module:
    model: nn.Module = SwinTransformerV2(
        img_size=16, patch_size=4, embed_dim=12, depths=(1,), num_heads=(2,), window_size=4
    )
    return model


@pytest.mark.parametrize("make", [small_beit, small_eva, small_swin])
def test_models_that_would_bypass_lora_are_refused(make: Callable[[], nn.Module]):
    model = make().eval().requires_grad_(requires_grad=False)
    with pytest.raises(UserError, match=r"ignore LoRA|no transformer blocks") as caught:
        methods.prepare(model, FineTuningConfig(method="lora"), 0)
        methods.check_gradients(model, (3, 16, 16))
    assert type(model).__name__ in str(caught.value)


@pytest.mark.parametrize("make", [small_beit, small_eva, small_swin])
def test_those_models_can_be_trained_in_full(make: Callable[[], nn.Module]):
    model = make().eval().requires_grad_(requires_grad=False)
    methods.prepare(model, FineTuningConfig(method="full"), 0)
    methods.check_gradients(model, (3, 16, 16))


def test_a_tensor_that_takes_no_part_is_named(make_backbone: MakeBackbone):
    built = make_backbone(method="head")
    built.model.register_parameter("idle", nn.Parameter(torch.zeros(2)))
    with pytest.raises(UserError, match="never uses 1 trained tensors, for example idle"):
        methods.check_gradients(built.model, built.image_shape)


def test_a_model_without_what_the_method_trains_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    model.requires_grad_(requires_grad=False)
    with pytest.raises(UserError, match="method head finds no head in VisionTransformer"):
        methods.prepare(model, FineTuningConfig(method="head"), 0)


def test_a_target_that_blocks_lack_is_refused():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, depth=1)
    model.blocks[0].mlp = nn.Identity()
    with pytest.raises(UserError, match=r"no linear layer 'mlp\.fc1' in Block, only \["):
        targets.attach(model, ["q", "fc1"], partial(LoRALinear, rank=4, alpha=8.0))


def test_more_ranks_than_a_layer_has_are_refused(make_backbone: MakeBackbone) -> None:
    with pytest.raises(UserError, match=r"finetuning\.rank 97: .* at most 96 .*attn\.qkv"):
        make_backbone(rank=97)


def test_the_layers_whose_biases_are_trained_can_be_chosen():
    """qkv has 3·96 and fc1 has 3·96 biases in each of six blocks; the head has 970 numbers."""
    model = random_vit().model
    chosen = FineTuningConfig(method="bias", parameters={"layers": ["qkv", "fc1"]})
    methods.prepare(model, chosen, 0)
    assert count(methods.trainable(model)) == 6 * (288 + 288) + 970
    wrong = FineTuningConfig(method="bias", parameters={"layers": ["qvk"]})
    with pytest.raises(UserError, match="did you mean 'qkv'"):
        methods.prepare(random_vit().model, wrong, 0)
