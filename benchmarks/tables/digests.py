"""Digests of the files that decide a table, which do not depend on comments and docstrings.

A digest is a short checksum. It shows whether a file has changed. The date of a file cannot show
this, because a checkout of the repository gives all files a new date.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

SHOWN = 12  # only this number of hexadecimal digits of a digest is stored
ENDINGS = (".py", ".yaml", ".safetensors")  # of files in folders
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def digest_of(content: bytes) -> str:
    """Returns the digest of some bytes."""
    return hashlib.sha256(content).hexdigest()[:SHOWN]


def digests(paths: Iterable[str], root: Path) -> dict[str, str]:
    """Returns the digest of each file and folder.

    Args:
        paths: Files and folders, relative to `root`.
        root: The folder of the repository.
    """
    return {path: _digest(root / path) for path in paths}


def _digest(path: Path) -> str:
    if path.is_file():
        return digest_of(_content(path))
    files = sorted(file for file in path.rglob("*") if file.suffix in ENDINGS)
    lines = [f"{file.relative_to(path).as_posix()} {digest_of(_content(file))}" for file in files]
    return digest_of("\n".join(lines).encode())


def _content(path: Path) -> bytes:
    """Returns what a file does: Python and YAML without comments, other files as they are."""
    if path.suffix == ".py":
        return code_alone(path.read_text(encoding="utf-8")).encode()
    if path.suffix == ".yaml":
        lines = path.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if not line.lstrip().startswith("#")).encode()
    return path.read_bytes()


def code_alone(source: str) -> str:
    r"""Returns Python source without docstrings, comments and empty lines.

    The result is the same for every version of Python, in contrast to that of `ast.dump`.

    Example:
        >>> code_alone('def f():\n    "Says."  # what\n    return "#"  # this\n\n')
        'def f():\n    return "#"'
    """
    lines = source.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
