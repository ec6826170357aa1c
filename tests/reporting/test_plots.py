"""The plots of a comparison: every combination of settings can be told from all others."""

from __future__ import annotations

import itertools

import pytest

from fl_vitlora.reporting.comparison_plots import legend_of, styles_of


@pytest.mark.parametrize(("hues", "shapes"), [(1, 1), (3, 2), (10, 10), (11, 4), (29, 1), (100, 1)])
def test_no_two_points_look_alike_and_the_legend_names_all(hues: int, shapes: int) -> None:
    looks = list(
        itertools.product([f"hue {i}" for i in range(hues)], [f"shape {i}" for i in range(shapes)])
    )
    styles = styles_of(looks)
    assert len({tuple(style.values()) for style in styles.values()}) == hues * shapes
    labels = [label for label, _ in legend_of(styles)]
    assert labels[:hues] == [f"hue {i}" for i in range(hues)]
    assert len(labels) == (hues if shapes == 1 else hues + shapes)


def test_a_comparison_of_seeds_alone_has_no_legend() -> None:
    assert legend_of(styles_of([("", "")])) == []
