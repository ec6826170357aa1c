"""The command `fl-vitlora report`: one HTML file about a run or a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_report(commands: Any) -> None:
    """Adds the command to the parser of the program."""
    parser = commands.add_parser(
        "report",
        help="write a report of a run or a comparison: one HTML file",
        description="Writes one HTML file with charts and tables about a finished run or a "
        "comparison, from its folder alone. The file contains everything that it shows, and loads "
        "nothing from the network.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the run folder, or the folder of a comparison"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the file to write (default: FOLDER/report.html)"
    )
    parser.add_argument(
        "--vector",
        choices=("pdf", "svg"),
        help="also write the plots in the folder plots again, as vector pictures of this format",
    )
    parser.set_defaults(command=report)


def report(arguments: argparse.Namespace) -> None:
    """Writes the report of a folder, and its plots as vector pictures if they are asked for."""
    from fl_vitlora.reporting.report.writing import write_report

    print(f"report in {write_report(arguments.folder, arguments.out)}")
    if arguments.vector:
        from fl_vitlora.reporting.report.vector_plots import write_vector_plots

        for path in write_vector_plots(arguments.folder, arguments.vector):
            print(f"plot in {path}")
