r"""The tables of a comparison for papers, in LaTeX with the rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from fl_vitlora.reporting.comparison_tables import (
    Report,
    heading_of_differences,
    readable_cells,
    readable_differences,
)

ESCAPED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "–": "--",
    "…": r"\dots{}",
    "α": r"$\alpha$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "\n": " ",
    "\r": " ",
}
HEAD = r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}."


def escape(text: str) -> str:
    r"""Returns a text that LaTeX prints as it is.

    Example:
        >>> print(escape("lora_A & 50 % of 10^6 ± 1"))
        lora\_A \& 50 \% of 10\textasciicircum{}6 $\pm$ 1
    """
    return "".join(ESCAPED.get(character, character) for character in text)


def latex_table(rows: Sequence[Sequence[str]], texts: int) -> str:
    r"""Returns a LaTeX table.

    Args:
        rows: The texts of all cells. The first of the rows is the header.
        texts: The number of columns at the left that are texts; the others are numbers.

    Example:
        >>> print(latex_table([["method", "%"], ["lora", "95.6 ± 0.5"]], texts=1))
        \begin{tabular}{lr}
        \toprule
        method & \% \\
        \midrule
        lora & 95.6 $\pm$ 0.5 \\
        \bottomrule
        \end{tabular}
    """
    columns = "".join("l" if column < texts else "r" for column in range(len(rows[0])))
    head, *body = [f"{' & '.join(map(escape, row))} \\\\" for row in rows]
    lines = [r"\toprule", head, r"\midrule", *body, r"\bottomrule"]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *lines, r"\end{tabular}"])


def to_latex(comparison: Report) -> str:
    """Returns the tables of cells and differences for a paper."""
    parts = [HEAD]
    if comparison.title:
        parts.append(f"% {' '.join(comparison.title.split())}")
    parts.append(latex_table(readable_cells(comparison), texts=len(comparison.axes)))
    if comparison.differences:
        parts.append(f"% {heading_of_differences(comparison)}")
        parts.append(latex_table(readable_differences(comparison), texts=2))
    return "\n".join(parts) + "\n"
