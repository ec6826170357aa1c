"""Amounts of bytes as people write them, and as they do not."""

from __future__ import annotations

import pytest

from fl_vitlora.config import load, to_yaml
from fl_vitlora.config.units import parse_bytes, readable_bytes
from fl_vitlora.errors import UserError


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (1, 1),
        ("1", 1),
        ("50MB", 50_000_000),
        ("50 mb", 50_000_000),
        ("1.5GB", 1_500_000_000),
        (".5kB", 500),
        ("1KiB", 1024),
        ("2MiB", 2 * 2**20),
        ("1GiB", 2**30),
        ("800B", 800),
        (1e6, 1_000_000),
    ],
)
def test_numbers_with_and_without_units_are_read(amount: object, expected: int):
    assert parse_bytes(amount, "budget") == expected


@pytest.mark.parametrize(
    "amount", ["", "MB", "5 XB", "-5MB", "1e9 bytes", True, None, [5], "0", 0, "9" * 400]
)
def test_anything_else_is_told_with_its_place(amount: object):
    with pytest.raises(UserError, match=r"^budget: expected "):
        parse_bytes(amount, "budget")


def test_a_budget_is_stored_in_bytes_and_reads_back():
    config = load(None, {"budget": "50MB"})
    assert config.budget == 50_000_000
    assert "budget: 50000000\n" in to_yaml(config)
    assert load(None).budget is None


@pytest.mark.parametrize(
    ("count", "written"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999.4, "999 B"),
        (999.6, "1.0 kB"),
        (49_000, "49.0 kB"),
        (999_960, "1.0 MB"),
        (24_000_000, "24.0 MB"),
        (1.8e9, "1.8 GB"),
        (2.5e15, "2500.0 TB"),
    ],
)
def test_bytes_are_written_in_the_unit_that_suits_them(count: float, written: str):
    assert readable_bytes(count) == written
