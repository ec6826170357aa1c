"""A progress bar of Rich that is visible inside a `with` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import Progress


class ShownBar:
    """The base of displays with one bar.

    Args:
        bar: The bar. It starts with the `with` block and stops with it.
    """

    def __init__(self, bar: Progress) -> None:
        self._bar = bar

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
