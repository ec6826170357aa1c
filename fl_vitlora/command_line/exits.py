"""How the program ends: one line on the standard error, and an exit code that says why."""

from __future__ import annotations

import sys
from typing import NoReturn

LONGEST_LINE = 1000  # characters of an error message
USER_MISTAKE, RUN_FAILED, RULE_BROKEN, INTERRUPTED = 2, 1, 1, 130


def fail(message: str, code: int) -> NoReturn:
    """Prints the message as one line and ends the program.

    Args:
        message: What went wrong. Line breaks become spaces; characters that cannot be printed are
            escaped; a message that is too long is shortened in the middle.
        code: The exit code.

    Raises:
        SystemExit: Always.
    """
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
    print(f"simulate.py: {line}", file=sys.stderr)
    raise SystemExit(code)
