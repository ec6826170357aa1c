"""A bottleneck is the formula of its docstring, in groups and for several clients as well."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.bottleneck import Bottleneck
from fl_vitlora.finetuning.houlsby import Houlsby
from tests.finetuning.moved_model import tokens


def drawn(groups: int = 1, hidden: int = 4) -> Bottleneck:
    """Makes a bottleneck of width 96 with random tensors."""
    torch.manual_seed(0)
    made = Bottleneck(Houlsby(), 96, hidden, activation=None, scale=0.5, groups=groups).double()
    for parameter in made.parameters():
        parameter.data.normal_()
    return made


def test_it_is_zero_at_the_start():
    assert not Bottleneck(Houlsby(), 96, 4, activation=F.relu)(tokens().float()).any()


def test_it_narrows_bends_and_widens():
    made = drawn()
    made.activation = torch.tanh
    low = torch.tanh(F.linear(tokens(), made.down, made.down_shift))
    expected = 0.5 * F.linear(low, made.up, made.up_shift)
    assert torch.allclose(made(tokens()), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_matrix_of_a_linear_bottleneck_computes_the_same(groups: int):
    made = drawn(groups)
    matrix, shift = made.matrix()
    assert torch.allclose(F.linear(tokens(), matrix, shift), made(tokens()), atol=1e-12, rtol=0)


def test_with_two_groups_half_of_the_outputs_read_half_of_the_hidden_numbers():
    made = drawn(groups=2)
    made.down.data[:2], made.down_shift.data[:2] = 0, 0
    made.up_shift.data[:] = 0
    out = made(tokens())
    assert not out[..., :48].any()
    assert out[..., 48:].all()


@pytest.mark.parametrize(("hidden", "groups"), [(97, 1), (3, 2), (10, 5)])
def test_sizes_that_do_not_fit_are_refused(hidden: int, groups: int):
    with pytest.raises(
        UserError, match=rf"bottleneck is {hidden}, with {groups} groups.*at most 96"
    ):
        Bottleneck(Houlsby(), 96, hidden, groups=groups)


def test_the_hooks_act_before_after_and_beside_a_module():
    made, layer, x = drawn(), nn.Linear(96, 96).double(), tokens()
    y = layer(x)
    assert torch.equal(made.before(layer, (x, "mask"))[0], x + made(x))
    assert made.before(layer, (x, "mask"))[1] == "mask"
    assert torch.equal(made.after(layer, (x,), y), y + made(y))
    assert torch.equal(made.beside(layer, (x,), y), y + made(x))
