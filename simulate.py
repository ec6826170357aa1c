"""Federated fine-tuning of a vision transformer on encrypted images, simulated on this machine."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import sys  # noqa: E402 - the clock starts before the imports
from collections.abc import Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

HERE = Path(__file__).resolve().parent
if __name__ == "__main__" and Path(sys.path[0]).resolve() == Path.cwd() != HERE:
    del sys.path[0]  # `python -m simulate` in another folder imports nothing from that folder

from fl_vitlora import command_line  # noqa: E402


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the program with the words `argv`, by default the words of the command line."""
    command_line.main(argv, STARTED)


if __name__ == "__main__":
    main()
