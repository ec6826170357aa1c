"""A folder for Ray's sockets and logs: short enough, and writable.

Ray puts them below ``TMPDIR``, or ``/tmp``. The path of a socket may have 107 bytes on Linux and
103 on macOS, and Ray adds some 65 to that folder's. Where that does not fit, or the folder cannot
be written, a short folder is made elsewhere and removed with Ray.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fl_vitlora.errors import UserError

LONGEST_SOCKET = 103  # bytes
ADDED = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")
PLAIN = re.compile(r"/[A-Za-z0-9_./-]*", re.ASCII)  # what Ray's command lines hand on as it is
PREFIX = "ray-"
NAME = len("/ray-12345678")  # of a folder that is made
ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def session_folder(
    environment: Mapping[str, str] = os.environ, elsewhere: Sequence[str] = ELSEWHERE
) -> Iterator[dict[str, str]]:
    """Finds or makes the folder, and removes it at the end if it was made.

    Args:
        environment: Environment variables of this process.
        elsewhere: Folders below which one may be made, the first that fits.

    Yields:
        What `ray.init` is told; nothing where its own choice does.

    Raises:
        UserError: When no folder fits.
    """
    own = default_folder(environment)
    if fits(own) and is_writable(own):
        yield {}
        return
    others = [environment.get("XDG_RUNTIME_DIR", ""), environment.get("HOME", "")]
    for place in (*elsewhere, *others):
        if place and fits(place, NAME) and Path(place).is_dir() and is_writable(place):
            with tempfile.TemporaryDirectory(
                prefix=PREFIX, dir=place, ignore_cleanup_errors=True
            ) as made:
                yield {"_temp_dir": made}
            return
    why = "cannot be written" if fits(own) else "is too long for the paths of Ray's sockets"
    raise UserError(
        f"{own} {why}; name a writable folder of at most {LONGEST_SOCKET - ADDED - len('/ray')} "
        "plain characters: export RAY_TMPDIR=/short/folder"
    )


def default_folder(environment: Mapping[str, str]) -> str:
    """Names the folder that Ray takes by itself."""
    if "RAY_TMPDIR" in environment:
        return str(Path(environment["RAY_TMPDIR"]) / "ray")
    own = environment.get("TMPDIR", "") if sys.platform.startswith("linux") else ""
    return str(Path(own or "/tmp") / "ray")


def fits(folder: str, more: int = 0) -> bool:
    """Tells whether sockets below a folder have paths that the system and Ray take.

    Example:
        >>> fits("/tmp/ray"), fits("/tmp/" + 40 * "x"), fits("/my temporary files")
        (True, False, False)
    """
    return bool(PLAIN.fullmatch(folder)) and len(folder) + more + ADDED <= LONGEST_SOCKET


def is_writable(folder: str) -> bool:
    """Tells whether a folder can be written, or be made."""
    path = Path(folder)
    above = next(place for place in (path, *path.parents) if place.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)
