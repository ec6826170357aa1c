"""Clients of unequal sizes share a batch, and the order of tokens and images is undone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.finetuning.side_network import Mixer, SideNetwork, images_first, tokens_first
from fl_vitlora.rng import generator

TOKENS, WIDTH, RANK = 5, 6, 2


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "side"), dtype=torch.float64)


def network(*kinds: bool, seed: int) -> SideNetwork:
    sizes = {True: TOKENS, False: WIDTH}
    made = SideNetwork([Mixer(sizes[tokens], RANK, tokens=tokens) for tokens in kinds]).double()
    for number, parameter in enumerate(made.parameters()):
        parameter.data = draw(*parameter.shape, seed=100 * seed + number)
    return made


def together(networks: list[SideNetwork], sizes: tuple[int, ...]) -> SideNetwork:
    """Returns the network of stacked clients."""
    kinds: list[Any] = [mixer.tokens for mixer in networks[0].mixers]
    stacked = network(*kinds, seed=0)
    for number, mixer in enumerate(stacked.mixers):
        for name in ("down", "down_bias", "up", "up_bias"):
            own: list[Any] = [getattr(one.mixers[number], name) for one in networks]
            setattr(mixer, name, nn.Parameter(torch.stack([tensor.detach() for tensor in own])))
    stacked.batch_sizes = lambda images: sizes
    return stacked


@pytest.mark.parametrize("sizes", [(2, 2, 2), (4, 1, 2), (3, 2), (1,)])
@pytest.mark.parametrize("kinds", [(False, True, False, True), (False, False), (True, False)])
@pytest.mark.parametrize("read", [1, None])
def test_stacked_clients_compute_what_each_computes_alone(
    sizes: tuple[int, ...], kinds: tuple[bool, ...], read: int | None
):
    """There are three clients in the stack; the last ones may have taken all their steps."""
    networks = [network(*kinds, seed=seed) for seed in range(3)]
    outputs = draw(sum(sizes), len(kinds), TOKENS, WIDTH, seed=7)
    parts = torch.split(outputs, list(sizes))
    expected = torch.cat([own(part, read) for own, part in zip(networks, parts, strict=False)])
    stacked = together(networks, sizes)
    found = stacked(outputs, read)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    found.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in stacked.named_parameters():
        for client, own in enumerate(networks):
            alone = own.get_parameter(name).grad
            mine = torch.zeros_like(parameter[client]) if alone is None else alone
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad[client], mine, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kinds", [(False, True, False, True), (False, False), (True, False)])
def test_fewer_tokens_are_the_first_of_all_tokens(kinds: tuple[bool, ...]):
    outputs = draw(3, len(kinds), TOKENS, WIDTH, seed=1)
    side = network(*kinds, seed=2)
    torch.testing.assert_close(side(outputs, 2), side(outputs)[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (4,)])
def test_the_order_of_the_mixers_is_undone(sizes: tuple[int, ...]):
    outputs = draw(4, 2, TOKENS, WIDTH, seed=3)
    ordered = tokens_first(outputs, sizes)
    assert ordered.shape == (2, len(sizes), TOKENS, max(sizes), WIDTH)
    for number, own in enumerate(ordered):
        assert torch.equal(images_first(own, sizes), outputs[:, number])
