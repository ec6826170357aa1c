"""A small pen for figures: boxes, arrows and lines of text as SVG, in light and in dark colours.

The colours follow the setting of the reader's system. Every figure has a background of its own, so
that it can be read on any page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

LINE = 20  # pixels from one line of text to the next
STYLE = """
text { font: 15.5px "Helvetica Neue", Arial, "Liberation Sans", sans-serif; fill: #1d232b }
.title { font-weight: bold }
.small { font-size: 14px }
.quiet { fill: #56606d }
.page { fill: #ffffff; stroke: #d4d9df }
.owner { fill: #fff4dd; stroke: #b98413 }
.client { fill: #e8f1fd; stroke: #3a6fb5 }
.server { fill: #e9f6ec; stroke: #3b8650 }
.plain { fill: #f6f7f9; stroke: #939ca8 }
.line { stroke: #56606d; stroke-width: 1.6; fill: none }
.dashed { stroke-dasharray: 5 4 }
.head { fill: #56606d }
@media (prefers-color-scheme: dark) {
  text { fill: #e8ebef }
  .quiet { fill: #aab3bf }
  .page { fill: #1c2128; stroke: #3c444f }
  .owner { fill: #463611; stroke: #d6a33a }
  .client { fill: #1c3554; stroke: #6fa3e6 }
  .server { fill: #1c3d27; stroke: #6cbb83 }
  .plain { fill: #2a3038; stroke: #7f8995 }
  .line { stroke: #aab3bf }
  .head { fill: #aab3bf }
}
"""
HEAD = (  # of an arrow
    '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path class="head" d="M0,0 L10,5 L0,10 z"/></marker>'
)


@dataclass(kw_only=True)
class Drawing:
    """A figure that is drawn piece by piece.

    Attributes:
        width: The width in pixels.
        height: The height in pixels.
        title: What the figure shows, in one sentence, for readers who cannot see it.
        pieces: The elements of the SVG, in the order in which they were drawn.
    """

    width: int
    height: int
    title: str
    pieces: list[str] = field(default_factory=list)

    def box(
        self, x: float, y: float, w: float, h: float, *, kind: str = "plain", round_: float = 8
    ) -> None:
        """Draws a rectangle; its `kind` is a class of `STYLE`."""
        self.pieces.append(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" '
            f'width="{w:g}" height="{h:g}" rx="{round_:g}"/>'
        )

    def text(
        self, x: float, y: float, words: str, *, kind: str = "", anchor: str = "start"
    ) -> None:
        """Writes one line of text, whose base line is at y."""
        self.pieces.append(
            f'<text class="{kind}" x="{x:g}" y="{y:g}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )

    def card(self, x: float, y: float, w: float, lines: Sequence[str], *, kind: str) -> None:
        """Draws a box with a title and lines of text."""
        self.box(x, y, w, LINE * len(lines) + 15, kind=kind)
        for number, line in enumerate(lines):
            look = "small" if number else "title"
            self.text(x + 12, y + 22 + LINE * number, line, kind=look)

    def lines(self, x: float, y: float, words: Sequence[str], *, kind: str = "small") -> None:
        """Writes lines of text, one below the other."""
        for number, line in enumerate(words):
            self.text(x, y + LINE * number, line, kind=kind)

    def arrow(self, *points: tuple[float, float], dashed: bool = False, both: bool = False) -> None:
        """Draws a line through points, with a head at its end, or at both ends."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        start = ' marker-start="url(#head)"' if both else ""
        look = "line dashed" if dashed else "line"
        self.pieces.append(
            f'<polyline class="{look}" points="{path}"{start} marker-end="url(#head)"/>'
        )

    def svg(self) -> str:
        """Returns the figure as the text of an SVG file."""
        w, h = self.width, self.height
        page = Drawing(width=w, height=h, title=self.title)
        page.box(0.5, 0.5, w - 1, h - 1, kind="page", round_=10)
        parts = [
            '<svg xmlns="http://www.w3.org/2000/svg" role="img" '
            f'width="{w}" height="{h}" viewBox="0 0 {w} {h}">',
            f"<title>{escape(self.title)}</title>",
            f"<style>{STYLE}</style>",
            f"<defs>{HEAD}</defs>",
            *page.pieces,
            *self.pieces,
            "</svg>",
        ]
        return "\n".join(parts) + "\n"
