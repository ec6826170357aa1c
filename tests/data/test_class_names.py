"""Labels mean names: a number of one list is never taken for a number of another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.data.class_names import disagreement, read_names, renumbered, write_names
from fl_vitlora.errors import UserError

NAMES = st.lists(st.text(max_size=5), min_size=1, max_size=6, unique=True)


@given(names=NAMES)
def test_names_come_back_in_their_order(names: list[str]):
    assert read_names(write_names(names), "a shard") == tuple(names)


@given(names=NAMES, data=st.data())
def test_labels_keep_their_names_whatever_the_order(names: list[str], data: st.DataObject):
    other = data.draw(st.permutations(names))
    labels = torch.tensor(data.draw(st.lists(st.integers(0, len(names) - 1))), dtype=torch.int64)
    mapped = renumbered(labels, names, other, "a shard")
    assert [other[place] for place in mapped] == [names[place] for place in labels]
    assert mapped.dtype == torch.int64


@pytest.mark.parametrize(
    ("own", "wanted", "says"),
    [
        (("cat", "cow"), ("cat", "dog"), "a shard has other classes than this run .*'cow'.*'dog'"),
        (("cat",), ("cat", "dog"), "only in this run: 'dog'"),
        (("cat", "dog", "hen"), ("cat", "dog"), "only there: 'hen'"),
        (("Cat", "dog"), ("cat", "dog"), "only there: 'Cat'"),
        (("0", "1"), ("cat", "dog"), "only there: '0', '1'"),
    ],
)
def test_other_names_are_refused(own: tuple[str, ...], wanted: tuple[str, ...], says: str):
    with pytest.raises(UserError, match=says) as caught:
        renumbered(torch.tensor([0]), own, wanted, "a shard")
    assert "\n" not in str(caught.value)
    assert disagreement(own, wanted)


def test_many_names_are_told_in_few_words():
    told = disagreement([f"class {n}" for n in range(1000)], ["cat"])
    assert len(told) < 200
    assert "and 997 more" in told


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_a_label_without_a_name_is_refused(label: int):
    with pytest.raises(
        UserError,
        match=f"a shard has labels from .*{label}.* list of class names covers only 0 to 1",
    ):
        renumbered(torch.tensor([0, label]), ("cat", "dog"), ("cat", "dog"), "a shard")


@pytest.mark.parametrize("text", ["10", "", "[]", "{}", '["cat", 1]', '"cat"', "[" * 5000, "cat"])
def test_what_is_no_list_of_names_is_refused(text: str):
    with pytest.raises(UserError, match="a shard: expected a list with the names of the classes"):
        read_names(text, "a shard")


def test_a_name_that_stands_twice_tells_nothing_apart():
    with pytest.raises(UserError, match="the class name 'cat' occurs twice"):
        write_names(("cat", "dog", "cat"))
    with pytest.raises(UserError, match="a shard: the class name 'cat' occurs twice"):
        read_names('["cat", "cat"]', "a shard")
