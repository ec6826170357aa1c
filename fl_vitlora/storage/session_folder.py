"""Finds a folder with a short path for the sockets and logs of Ray.

Ray puts its sockets and logs below ``TMPDIR``, or below ``/tmp``. The path of a socket may have at
most 107 bytes on Linux and 103 bytes on macOS. Ray adds about 65 bytes to the path of the folder.
If the path of a socket would be too long, or if the folder cannot be written, this module makes a
folder with a short path in another place. A folder that this module has made is removed when Ray
ends.
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

LONGEST_SOCKET = 103  # most bytes of the path of a socket
ADDED = len("/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store")
PLAIN = re.compile(r"/[A-Za-z0-9_./-]*", re.ASCII)  # Ray's command lines do not quote paths
PREFIX = "ray-"
NAME = len("/ray-12345678")  # characters that the name of a new folder adds to a path
ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")


@contextlib.contextmanager
def session_folder(
    environment: Mapping[str, str] = os.environ, elsewhere: Sequence[str] = ELSEWHERE
) -> Iterator[dict[str, str]]:
    """Provides a folder for Ray inside a `with` block; a new folder is removed at the end.

    Args:
        environment: The environment variables of this process.
        elsewhere: Folders in which a new folder may be made. The first suitable one of these
            folders is used.

    Yields:
        A dictionary: the arguments for `ray.init`, empty if Ray's default folder is suitable.

    Raises:
        UserError: If no folder has a short path and can be written.
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
        f"the folder for Ray, {own}, {why}; choose a writable folder whose path has at most "
        f"{LONGEST_SOCKET - ADDED - len('/ray')} characters without spaces: export "
        "RAY_TMPDIR=/short/folder"
    )


def default_folder(environment: Mapping[str, str]) -> str:
    """Returns the path of the folder that Ray uses by default."""
    if "RAY_TMPDIR" in environment:
        return str(Path(environment["RAY_TMPDIR"]) / "ray")
    own = environment.get("TMPDIR", "") if sys.platform.startswith("linux") else ""
    return str(Path(own or "/tmp") / "ray")


def fits(folder: str, more: int = 0) -> bool:
    """Returns True if a folder's path is short enough and has only characters that Ray allows.

    Args:
        folder: The path of the folder.
        more: The number of characters that will be added to the path.

    Example:
        >>> fits("/tmp/ray"), fits("/tmp/" + 40 * "x"), fits("/my temporary files")
        (True, False, False)
    """
    return bool(PLAIN.fullmatch(folder)) and len(folder) + more + ADDED <= LONGEST_SOCKET


def is_writable(folder: str) -> bool:
    """Returns True if a folder is writable, or can be made if it does not exist."""
    path = Path(folder)
    above = next(place for place in (path, *path.parents) if place.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)
