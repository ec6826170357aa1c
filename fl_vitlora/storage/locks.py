"""Asks whether a process holds a lock on a file or folder, without keeping the lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_locked(path: Path) -> bool | None:
    """Returns True if a process has locked a file or folder with `Hold`.

    This function takes a shared lock for some microseconds. A program that wants the lock at this
    moment tries again (`storage.files.Hold`).

    Args:
        path: The path of the file or folder.

    Returns:
        True or False, or None if the file system has no locks or the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)  # which also gives up the shared lock
    return False
