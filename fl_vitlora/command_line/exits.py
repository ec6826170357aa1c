"""Ends the program after an error, with one line on standard error and an exit code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

LONGEST_LINE = 1000  # the largest number of characters of an error message
USER_MISTAKE, RUN_FAILED, RULE_BROKEN, BOUND_BROKEN, INTERRUPTED = 2, 1, 1, 1, 130


def simulation_command(first: str | None = None) -> str:
    """Returns the command with which the user starts simulations.

    Where only the package is installed, there is no file `simulate.py`, and the installed program
    has the command ``simulate``.

    Args:
        first: The first word of the command line. By default this is the word with which the
            process was started.

    Example:
        >>> simulation_command("/usr/bin/fl-vitlora"), simulation_command("simulate.py")
        ('fl-vitlora simulate', 'python simulate.py')
    """
    name = Path(sys.argv[0] if first is None else first).stem
    return "fl-vitlora simulate" if name == "fl-vitlora" else "python simulate.py"


def fail(message: str, code: int, program: str = "simulate.py") -> NoReturn:
    """Prints an error message as one line and ends the program.

    Args:
        message: A description of the error, as `tell` prints it.
        code: The exit code of the program.
        program: The name of the program, with which the line begins.

    Raises:
        SystemExit: Always, because this function ends the program.
    """
    tell(message, program)
    raise SystemExit(code)


def tell(message: str, program: str = "simulate.py") -> None:
    """Prints an error message as one line on standard error.

    Args:
        message: A description of the error. Line breaks become spaces, and characters that cannot
            be printed are escaped. If the message has more than `LONGEST_LINE` characters, three
            dots replace its middle.
        program: The name of the program, with which the line begins.
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(f"{program}: {line}", file=sys.stderr)
