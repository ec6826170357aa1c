"""Makes one HTML file of texts, tables and charts, which loads nothing from anywhere.

The page forbids all requests by its Content-Security-Policy. Only scripts whose digests are in the
policy can run. So even if a class name with HTML were not escaped, its code could not run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fl_vitlora import __version__
from fl_vitlora.errors import UserError

if TYPE_CHECKING:
    from fl_vitlora.reporting.report.charts import Chart

NEEDS = "a report needs the packages plotly and jinja2: python -m pip install -e '.[report]'"
CITATION = """@misc{lin2025effective,
  title         = {Effective Fine-Tuning of Vision Transformers with Low-Rank Adaptation
                   for Privacy-Preserving Image Classification},
  author        = {Haiwei Lin and Shoko Imaizumi and Hitoshi Kiya},
  year          = {2025},
  eprint        = {2507.11943},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page.

    Attributes:
        title: The caption.
        head: The names of the columns.
        rows: The texts of the cells. The first cell of a row names the row.
        texts: The number of columns at the left that are texts; the others are numbers.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1


def expect_packages() -> None:
    """Checks that the packages for reports are installed.

    Raises:
        UserError: If a package is missing.
    """
    try:
        import jinja2
        import plotly
    except ImportError:
        raise UserError(NEEDS) from None
    del jinja2, plotly


def render(
    template: str,
    context: Mapping[str, Any],
    *,
    scripts: Sequence[str] = ("look.js", "charts.js"),
    connects: bool = False,
) -> str:
    """Returns the HTML text of a page.

    Args:
        template: The name of the template in the folder `templates`.
        context: The values that the template shows, by name. Mappings and lists may be nested,
            and charts may stand on any level.
        scripts: The names of the page's scripts in the folder `templates`. The library plotly is
            always part of the page.
        connects: True if the page may ask the server that it comes from.

    Raises:
        UserError: If a package for reports is missing.
    """
    expect_packages()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("fl_vitlora.reporting.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["data_of"] = lambda chart: Markup(data_of(chart))
    texts = [_script(get_plotlyjs()), *(_script(_file(name)) for name in scripts)]
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {' '.join(map(_digest, texts))}; base-uri 'none'; form-action 'none'"
    ) + ("; connect-src 'self'" if connects else "")
    text = environment.get_template(template).render(
        context,
        policy=policy,
        style=Markup(_file("style.css")),
        scripts=[Markup(text) for text in texts],
        citation=CITATION,
        version=__version__,
    )
    return text + "\n"


def data_of(chart: Chart) -> str:
    r"""Returns a chart as JSON that can stand in a script element.

    Characters that could end the element are written as JSON's escapes.
    """
    import plotly.io

    return in_script(plotly.io.to_json(chart.figure))


def in_script(text: str) -> str:
    r"""Returns JSON in which no character could end a script element or begin a comment.

    Example:
        >>> print(in_script('"</script><!-- & -->"'))
        "\u003c/script\u003e\u003c!-- \u0026 --\u003e"
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _file(name: str) -> str:
    return files("fl_vitlora.reporting.report").joinpath("templates", name).read_text("utf-8")


def _script(text: str) -> str:
    """Returns a script as a browser reads it from a page; the policy has the digest of this text.

    Raises:
        ValueError: If the script would end its own element.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script has a text that a page cannot contain")
    return text


def _digest(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"
