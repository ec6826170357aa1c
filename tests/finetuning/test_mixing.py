"""Values and gradients of the mixers are those of the equations, found by another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.finetuning.mixing import Mixing, refine
from fl_vitlora.rng import generator

CLIENTS, TOKENS, IMAGES, WIDTH, RANK = 2, 5, 3, 4, 2
KINDS = [(False, True, False, True), (False, True, True, False), (False,), (True,), (True, False)]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "mixing"), dtype=torch.float64)


def blocks_of(count: int, *, seed: int = 0) -> Tensor:
    return draw(count, CLIENTS, TOKENS, IMAGES, WIDTH, seed=seed)


def tensors_of(kinds: tuple[bool, ...], read: int) -> list[Tensor]:
    """Returns the trained tensors of all mixers; a last mixer of tokens has `read` rows."""
    found = []
    for number, tokens in enumerate(kinds):
        size = TOKENS if tokens else WIDTH
        rows = read if tokens and number == len(kinds) - 1 else size
        shapes = [(RANK, size), (RANK,), (rows, RANK), (rows,)]
        found += [
            draw(CLIENTS, *shape, seed=10 * number + place).requires_grad_()
            for place, shape in enumerate(shapes)
        ]
    return found


def mixings_of(kinds: tuple[bool, ...], tensors: list[Tensor]) -> list[Mixing]:
    groups = [tensors[4 * number : 4 * number + 4] for number in range(len(kinds))]
    return [
        Mixing(down=down, down_bias=down_bias, up=up, up_bias=up_bias, tokens=kind)
        for kind, (down, down_bias, up, up_bias) in zip(kinds, groups, strict=True)
    ]


def by_the_equations(blocks: Tensor, mixings: list[Mixing], read: int) -> Tensor:
    """Computes every client and image alone, on matrices (T, D)."""
    found = torch.empty(CLIENTS, read, IMAGES, WIDTH, dtype=torch.float64)
    for client in range(CLIENTS):
        for image in range(IMAGES):
            refined = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
            for mixing, block in zip(mixings, blocks, strict=True):
                down, down_bias, up, up_bias = (tensor[client] for tensor in mixing.tensors)
                h = block[client, :, image] + refined
                turned = h.T if mixing.tokens else h
                change = F.gelu(turned @ down.T + down_bias) @ up.T + up_bias
                change = change.T if mixing.tokens else change
                refined = refined[: len(change)] + change
            whole = blocks[-1][client, :, image][: len(refined)] + refined
            found[client, :, image] = whole[:read]
    return found


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("read", [1, 2, TOKENS])
def test_values_and_gradients_are_those_of_automatic_differentiation(
    kinds: tuple[bool, ...], read: int
):
    blocks = blocks_of(len(kinds)).requires_grad_()
    tensors = tensors_of(kinds, read)
    mixings = mixings_of(kinds, tensors)
    found, expected = refine(blocks, mixings, read), by_the_equations(blocks, mixings, read)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    given = draw(*found.shape, seed=99)
    one, other = (torch.autograd.grad(y, [blocks, *tensors], given) for y in (found, expected))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kinds", KINDS)
def test_gradients_of_the_mixers_do_not_depend_on_the_gradient_of_the_blocks(
    kinds: tuple[bool, ...],
):
    """Frozen features get no gradient, and then the computation takes another way."""
    blocks, tensors = blocks_of(len(kinds)), tensors_of(kinds, 1)
    found = [
        torch.autograd.grad(refine(given, mixings_of(kinds, tensors), 1).square().sum(), tensors)
        for given in (blocks, blocks.clone().requires_grad_())
    ]
    assert all(map(torch.equal, *found))


def test_without_gradients_the_values_have_the_same_bits():
    kinds = KINDS[0]
    blocks, mixings = blocks_of(len(kinds)), mixings_of(kinds, tensors_of(kinds, 1))
    expected = refine(blocks, mixings, 1)
    with torch.no_grad():
        assert torch.equal(refine(blocks, mixings, 1), expected)


def test_the_given_tensors_are_not_changed():
    kinds = KINDS[0]
    blocks, tensors = blocks_of(len(kinds)), tensors_of(kinds, TOKENS)
    before = [tensor.detach().clone() for tensor in (blocks, *tensors)]
    refine(blocks, mixings_of(kinds, tensors), TOKENS).sum().backward()
    assert all(map(torch.equal, before, (blocks, *tensors)))


def test_a_gradient_of_the_gradient_is_refused():
    kinds = KINDS[0]
    tensors = tensors_of(kinds, 1)
    loss = refine(blocks_of(len(kinds)), mixings_of(kinds, tensors), 1).square().sum()
    first = torch.autograd.grad(loss, tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()
