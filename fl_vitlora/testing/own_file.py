"""Finds the class that an author wants to check, in a Python file or by its name."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fl_vitlora.config.named_code import cause_of, code_named
from fl_vitlora.errors import UserError


def class_named(name: str, flag: str, fits: Callable[[type], bool], expected: str) -> type[Any]:
    """Returns the class that a flag names.

    Args:
        name: The value of the flag: the path of a Python file that defines one class of the
            expected kind, or ``package.module:Class``.
        flag: The name of the flag, for error messages.
        fits: A function that returns True for classes of the expected kind.
        expected: The expected kind in words, for error messages.

    Raises:
        UserError: If the code cannot be imported, or if it does not define exactly one class of the
            expected kind.
    """
    if Path(name).suffix == ".py":
        return class_in_file(name, flag, fits, expected)
    if not name.partition(":")[2]:
        raise UserError(f"{flag} {name}: expected a Python file or package.module:Class")
    found: type[Any] = code_named(name, expected, lambda kind: inspect.isclass(kind) and fits(kind))
    return found


def class_in_file(name: str, flag: str, fits: Callable[[type], bool], expected: str) -> type[Any]:
    """Imports a Python file and returns the one class of the expected kind that it defines.

    Args:
        name: The path of the file that is imported.
        flag: The name of the flag that names the file, for error messages.
        fits: A function that returns True for classes of the expected kind.
        expected: The expected kind in words, for error messages.

    Raises:
        UserError: If the file cannot be imported, or if it does not define exactly one class of the
            expected kind.
    """
    module = module_in_file(name, flag)
    own = _fitting(module, fits)
    if len(own) != 1:
        raise UserError(f"{flag} {name}: expected one {expected} in this file, found {own}")
    found: type[Any] = vars(module)[own[0]]
    return found


def module_in_file(name: str, flag: str) -> ModuleType:
    """Imports a Python file.

    Args:
        name: The path of the file.
        flag: The name of the flag or command that names the file, for error messages.

    Raises:
        UserError: If the file cannot be imported.
    """
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{flag} {name}: no such file")
    module_name = f"checked_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not module_name.isidentifier():
        raise UserError(
            f"{flag} {name}: this is not a name that Python can import; rename the file to a "
            "Python name, such as mine.py"
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{flag} {name} cannot be imported: {cause_of(error)}") from error
    return module


def made(kind: type[Any], flag: str, name: str) -> Any:
    """Makes an instance of a class, without arguments.

    Args:
        kind: The class of which an instance is made.
        flag: The name of the flag that names the class, for error messages.
        name: The value of the flag, for error messages.

    Raises:
        UserError: If the class raises an error, for example because it needs arguments.
    """
    try:
        return kind()
    except Exception as error:
        raise UserError(
            f"{flag} {name}: no instance of the class {kind.__name__} can be made without "
            f"arguments: {cause_of(error)}"
        ) from error


def _fitting(module: ModuleType, fits: Callable[[type], bool]) -> list[str]:
    """Returns the names of the classes of the expected kind that a module itself defines."""
    return [
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and kind.__module__ == module.__name__ and fits(kind)
    ]
