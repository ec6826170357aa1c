"""Imports code that a user names by its module and name, ``package.module:Name``.

A fine-tuning method, an optimiser, a predictor, an attack, an observer or a strategy can be named
in this way. Importing a module runs its code. A name may come from a file that other people have
written. The user must confirm such a name before one of these functions is called; the module
`config.confirmation` checks this. The functions here import any module that is named.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from fl_vitlora.errors import UserError, shown, unknown


def is_class(name: str) -> bool:
    """Returns True if a name has the form ``package.module:Class``.

    Example:
        >>> is_class("lora"), is_class("my_package.mine:Mine")
        (False, True)
    """
    module, colon, own = name.partition(":")
    words = [*module.split("."), own]
    return bool(colon) and all(word.isidentifier() for word in words)


def subclass_of(base: type) -> Callable[[object], bool]:
    """Returns a function that returns True for the subclasses of a class, but not for the class.

    Args:
        base: The base class.

    Example:
        >>> [subclass_of(int)(thing) for thing in (bool, int, str, True)]
        [True, False, False, False]
    """
    return lambda thing: inspect.isclass(thing) and issubclass(thing, base) and thing is not base


def code_named(
    name: str,
    what: str,
    fits: Callable[[Any], bool],
    likely: Callable[[Any], bool] = lambda thing: True,
) -> Any:
    """Imports a module, and returns the object of this module that a user named.

    Args:
        name: The name ``package.module:Name``.
        what: A noun for the object in error messages, for example "attack".
        fits: A function that returns True for objects that the caller can use. For classes with a
            common base class, `subclass_of` makes the function.
        likely: A function that returns True for those fitting objects that an error may suggest.

    Raises:
        UserError: If the module cannot be imported, or has no such object that fits.

    Example:
        >>> code_named("decimal:Inexact", "error", subclass_of(ArithmeticError)).__name__
        'Inexact'
    """
    module_name, _, own = name.partition(":")
    module = module_named(module_name, f"{what} {shown(name)}")
    found = {n: thing for n, thing in vars(module).items() if fits(thing)}
    if own not in found:
        choices = [n for n, thing in found.items() if likely(thing)]
        raise unknown(f"{what} in {module_name}", own, choices)
    return found[own]


def module_named(module: str, what: str) -> ModuleType:
    """Imports a module of code that a user named.

    Args:
        module: The dotted name of the module.
        what: A description of the code for error messages, with its name.

    Raises:
        UserError: If the module cannot be imported, or if its code raises an error.
    """
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{what} cannot be imported: {cause_of(error)}") from error


def check_whole(kind: type, place: str) -> None:
    """Checks that a class has all abstract methods of its base class.

    Args:
        kind: The class.
        place: The name of the class as the user wrote it, or its file, for error messages.

    Raises:
        UserError: If a method is missing. The error suggests a method of the class with a similar
            name, which may be misspelt.
    """
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        written = [name for name in vars(kind) if not name.startswith("_")]
        near = difflib.get_close_matches(lacking[0], written, n=1, cutoff=0.8)
        hint = f"; did you misspell it as {near[0]!r}?" if near else ""
        raise UserError(
            f"{place}: class {kind.__name__} lacks the method {', '.join(lacking)}{hint}"
        )


def cause_of(error: BaseException) -> str:
    """Returns the type and the text of an error in one line.

    Example:
        >>> cause_of(ValueError("not a number"))
        'ValueError: not a number'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())
