"""Writes the report of a run folder or of a grid folder."""

from __future__ import annotations

from pathlib import Path

from fl_vitlora.errors import UserError
from fl_vitlora.reporting.grid_folder import GRID
from fl_vitlora.reporting.report.page import expect_packages, render
from fl_vitlora.reporting.run_folder import CONFIG
from fl_vitlora.storage.files import PRIVATE, PUBLIC, WriteError, write_atomically

REPORT = "report.html"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes a report, from the files of a folder alone.

    If the page shows plain images of the owners, only the current user can read it.

    Args:
        folder: The folder of a finished run or of a comparison.
        out: The file to write; None for `report.html` in the folder.

    Returns:
        The file.

    Raises:
        UserError: If the folder has neither a finished run nor a comparison, a file in it cannot be
            read, the report cannot be written, or a package for reports is missing.
    """
    expect_packages()
    place = out or folder / REPORT
    text, shows_plain = _page_of(folder)
    try:
        write_atomically(place, text, mode=PRIVATE if shows_plain else PUBLIC)
    except (WriteError, OSError) as error:
        raise UserError(f"{place} cannot be written: {error}") from None
    return place


def _page_of(folder: Path) -> tuple[str, bool]:
    """Returns the page, and True if the page shows plain images."""
    from fl_vitlora.reporting.report import grid_page, run_page  # import plotly
    from fl_vitlora.reporting.report.run_files import read_run

    is_grid = (folder / GRID).is_file()
    if not is_grid and not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} contains no run and no comparison; expected a folder with a {CONFIG} or a "
            f"{GRID}"
        )
    try:
        if is_grid:
            return render("grid.html.j2", grid_page.context_of(folder)), False
        files = read_run(folder)
        return render("run.html.j2", run_page.context_of(files)), files.shows_plain
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"{folder}: its files do not have the form that this version reads "
            f"({type(error).__name__}: {error})"
        ) from error
