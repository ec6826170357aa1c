"""The command `fl-vitlora watch` and the flag `--watch`: a page that follows a run in a browser."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fl_vitlora.errors import UserError

DESCRIPTION = """Shows a page on this machine that follows a run or a comparison while it runs:
rounds, accuracy, bytes, seconds a round, failures, and which runs wait or have ended. The page is
made from the folder alone, so it can be shown before, during and after the run, and by another
program than the one that runs. Only browsers on this machine can open it. Ctrl-C ends it."""


def add(commands: Any) -> None:
    """Adds the command to the parser of the program."""
    parser = commands.add_parser(
        "watch",
        help="follow a run or a comparison on a page in the browser",
        description=DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="the run folder, or the folder of a comparison"
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="the port (default: a free port)"
    )
    parser.set_defaults(command=watch)


def watch(arguments: argparse.Namespace) -> None:
    """Shows the page until the user ends the program.

    Raises:
        KeyboardInterrupt: When the user ends the program.
        UserError: If the folder has nothing to show, or the port cannot be used.
    """
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port {arguments.port}: expected a number from 0 to 65535")
    from fl_vitlora.reporting.report.page import expect_packages

    expect_packages()
    from fl_vitlora.reporting.live.server import LiveServer

    with LiveServer(arguments.folder, arguments.port) as server:
        print(f"{arguments.folder} is shown at {server.url} (Ctrl-C ends this)", flush=True)
        server.serve_forever()


@contextmanager
def watched(folder: Path, *, wanted: bool) -> Iterator[None]:
    """Shows the page of a run that is being started, inside a `with` block, if it is wanted.

    Raises:
        UserError: If the packages for the page are missing.
    """
    if not wanted:
        yield
        return
    from fl_vitlora.reporting.report.page import expect_packages

    expect_packages()
    from fl_vitlora.reporting.live.server import shown

    with shown(folder) as address:
        print(f"this run is shown at {address}", flush=True)
        yield
