"""The plots of a comparison: the accuracy over the megabytes sent, and over the trained share.

Each cell of the comparison is a point in these plots.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from fl_vitlora.config.grid_labels import axes_of
from fl_vitlora.reporting.plots import MEGABYTE, Form, Style, literal, write_plot
from fl_vitlora.reporting.statistics import Summary

MARKERS = "osD^vP*X<>"
COLOURS = 10  # the number of colours in matplotlib's default cycle
LONGEST_LEGEND = 22  # the largest number of labels in one column of a legend
WIDE = 10.0  # an axis is logarithmic if the ratio of largest to smallest value exceeds this

Look = tuple[str, str]


def plot_comparison(
    folder: Path, cells: Sequence[Summary], title: str, form: Form = "png"
) -> list[Path]:
    """Draws the accuracy over the megabytes sent and over the share of trained parameters.

    A point shows one cell of the comparison: one combination of settings. The colour of a point
    shows the value of the setting that has the most values in the comparison. The marker of a point
    shows the values of all other settings.

    Args:
        folder: The folder for the plots.
        cells: The cells that have a result. The error bars show the standard deviations of the
            cells.
        title: The title of the plots. If `title` is empty, the plots have no title.
        form: The format of the files.

    Returns:
        The files.
    """
    files = []
    megabytes = [cell.sent / MEGABYTE for cell in cells]
    shares = [100 * cell.trainable / cell.total for cell in cells]
    for name, x, label in (
        ("accuracy_over_megabytes", megabytes, "megabytes sent in a run, both directions"),
        ("accuracy_over_trained_share", shares, "share of the parameters that is trained (%)"),
    ):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        _draw_cells(axes, x, cells)
        axes.set(xlabel=label, ylabel="test accuracy (%)", title=literal(title))
        if max(x) > WIDE * min(x) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        files.append(write_plot(figure, folder, name, form))
    return files


def _draw_cells(axes: Axes, x: Sequence[float], cells: Sequence[Summary]) -> None:
    """Draws a point with its error bar for each cell, and a legend of colours and markers."""
    names = axes_of(cell.labels for cell in cells)
    coloured = max(names, key=lambda axis: len(names[axis]), default="")
    looks = [
        (
            cell.labels.get(coloured, ""),
            ", ".join(label for axis, label in cell.labels.items() if axis != coloured),
        )
        for cell in cells
    ]
    styles = styles_of(looks)
    for place, cell, look in zip(x, cells, looks, strict=True):
        if cell.accuracy is not None:
            axes.errorbar(
                place, cell.accuracy.mean, yerr=cell.accuracy.spread, capsize=3, **styles[look]
            )
    handles = [
        Line2D([], [], ls="", label=literal(label), **look) for label, look in legend_of(styles)
    ]
    if handles:
        columns = 1 + (len(handles) - 1) // LONGEST_LEGEND
        axes.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            fontsize="small",
            ncols=columns,
        )


def styles_of(looks: Iterable[Look]) -> dict[Look, Style]:
    """Returns a colour and a marker for each look; two looks differ in the colour or the marker.

    Args:
        looks: For each point, the value that its colour shows, and the value that its marker shows.

    Example:
        >>> styles = styles_of([("lora", "plain"), ("head", "plain"), ("lora", "encrypted")])
        >>> styles[("head", "plain")]
        {'color': 'C1', 'marker': 'o'}
    """
    hues, shapes = (list(dict.fromkeys(values)) for values in zip(*looks, strict=True))
    if len(shapes) == 1:  # the marker distinguishes labels of the same colour
        return {
            (hue, shapes[0]): {
                "color": f"C{i % COLOURS}",
                "marker": MARKERS[i // COLOURS % len(MARKERS)],
            }
            for i, hue in enumerate(hues)
        }
    few = len(hues) <= COLOURS
    rainbow = colormaps["turbo"].resampled(len(hues))
    return {
        (hue, shape): {
            "color": f"C{i}" if few else rainbow(i),
            "marker": MARKERS[j % len(MARKERS)],
        }
        for i, hue in enumerate(hues)
        for j, shape in enumerate(shapes)
    }


def legend_of(styles: Mapping[Look, Style]) -> list[tuple[str, Style]]:
    """Returns the lines of a legend: labels with styles, first for colours, then for markers."""
    if len({shape for _, shape in styles}) == 1:
        return [(hue, style) for (hue, _), style in styles.items() if hue]
    colours = {hue: {"color": s["color"], "marker": "o"} for (hue, _), s in styles.items()}
    markers = {shape: {"color": "grey", "marker": s["marker"]} for (_, shape), s in styles.items()}
    return [(label, style) for label, style in [*colours.items(), *markers.items()] if label]
