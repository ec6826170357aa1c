"""Tables for papers: what LaTeX reads is what the table says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.reporting.comparison_tables import report
from fl_vitlora.reporting.latex_tables import ESCAPED, escape, latex_table, to_latex
from fl_vitlora.reporting.statistics import Record

SPECIAL = "\\{}&%$#_~^"


@pytest.mark.parametrize("character", SPECIAL)
def test_a_special_character_of_latex_is_written_as_a_command(character: str):
    written = escape(f"a{character}b")
    assert written.startswith("a\\")
    assert written.endswith("b")
    assert written != f"a\\{character}b" or character in "{}&%$#_"


@given(st.text(st.sampled_from([*SPECIAL, *"ab \n±"])))
def test_no_special_character_stays_as_it_is(text: str):
    """What is left after the commands are taken out has nothing that LaTeX acts on."""
    rest = escape(text)
    for written in sorted(set(ESCAPED.values()) - {" "}, key=len, reverse=True):
        rest = rest.replace(written, "")
    assert not set(rest) & set(SPECIAL)
    assert "\n" not in rest


@given(st.text(st.characters(codec="utf-8")))
def test_all_other_characters_stay(text: str):
    kept = "".join(character for character in text if character not in ESCAPED)
    assert "".join(escape(character) for character in text if character not in ESCAPED) == kept


def test_a_row_has_as_many_columns_as_the_head():
    table = latex_table([["a & b", "c"], ["d & e", "f"]], texts=1)
    rows = [line for line in table.splitlines() if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [1, 1]


def records(*accuracies: float, label: str = "a_b") -> list[Record]:
    wire = {"uplink_bytes": 1, "downlink_bytes": 1, "saving": 2.0, "saving_with_flower": 1.5}
    return [
        Record(
            labels={"method": label},
            seed=seed,
            result={
                "accuracy": accuracy,
                "trainable_parameters": 1,
                "total_parameters": 2,
                "communication": wire,
                "seconds": {"total": 1.0},
            },
        )
        for seed, accuracy in enumerate(accuracies)
    ]


def test_a_paper_gets_means_with_deviations_and_differences():
    found = report("", [*records(0.5, 0.7), *records(0.6, 0.9, label="c")], {"method": "a_b"})
    text = to_latex(found)
    assert r"a\_b & 60.00 $\pm$ 14.14 & 2 &" in text
    assert r"c against a\_b &  & +15.00 $\pm$ 5.00 & 2 \\" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
