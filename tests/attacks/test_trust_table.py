"""The table of the page on trust: its cells come from the outcomes of audits."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks import trust
from fl_vitlora.attacks.results import Figure


def outcome(attack: str, adversary: str, *figures: Figure) -> dict[str, Any]:
    return {
        "attack": attack,
        "adversary": adversary,
        "seconds": 1.5,
        "verdict": "not",
        "figures": [vars(figure) for figure in figures],
    }


LITTLE = Figure(name="little", value=55, floor=50, ceiling=100)  # a gain of a tenth
MUCH = Figure(name="much", value=40, floor=10, ceiling=100)  # of a third
ALL = Figure(name="all", value=10, floor=0, ceiling=10)
UNJUDGED = Figure(name="rank", value=1000)
OUTCOMES = [
    outcome("span", "server", LITTLE, UNJUDGED),
    outcome("label_counts", "server", MUCH, LITTLE),
    outcome("second_order", "worker", ALL),
    outcome("second_order", "thief"),
]


def test_the_worst_figure_of_an_adversary_is_that_with_the_largest_gain():
    worst = trust.worst_of(OUTCOMES, "server")
    assert worst is not None
    assert (worst.attack, worst.figure.name) == ("label_counts", "much")
    assert trust.worst_of(OUTCOMES, "thief") is None
    assert trust.worst_of(OUTCOMES, "user") is None


def test_what_is_found_whole_is_printed_bold():
    assert trust.cell(trust.worst_of(OUTCOMES, "worker")) == "**10.0** (0.0) `second_order`"
    assert trust.cell(trust.worst_of(OUTCOMES, "server")) == "40.0 (10.0) `label_counts`"


def test_seconds_of_an_attack_are_those_of_all_of_its_adversaries():
    more = [*OUTCOMES, outcome("span", "outsider", LITTLE)]
    assert trust.seconds_of(more) == {"span": 3.0, "label_counts": 1.5, "second_order": 1.5}


def test_a_row_has_the_accuracy_over_seeds_and_a_cell_for_each_adversary(tmp_path: Path):
    for seed, accuracy in enumerate((0.9, 0.92)):
        run = trust.place(tmp_path, "shared", seed)
        run.mkdir()
        (run / "result.json").write_text(json.dumps({"accuracy": accuracy}))
    audited = trust.place(tmp_path, "shared", 0)
    (audited / "attacks.json").write_text(json.dumps({"attacks": OUTCOMES[:2]}))
    (audited / trust.MORE).write_text(json.dumps({"attacks": OUTCOMES[2:]}))
    cells = trust.row(tmp_path, "shared", [0, 1]).strip("| ").split(" | ")
    assert cells[:3] == ["`shared`", "91.0 ± 1.4", "40.0 (10.0) `label_counts`"]
    assert len(cells) == 2 + len(trust.ADVERSARIES)


def test_an_attack_that_did_not_end_is_named_in_its_cell(tmp_path: Path):
    run = trust.place(tmp_path, "shared", 0)
    run.mkdir()
    (run / "result.json").write_text(json.dumps({"accuracy": 0.9}))
    late = outcome("membership_rounds", "server") | {"verdict": "out of time"}
    (run / "attacks.json").write_text(json.dumps({"attacks": [*OUTCOMES, late]}))
    row = trust.row(tmp_path, "shared", [0])
    assert "40.0 (10.0) `label_counts`; `membership_rounds` out of time |" in row


def test_a_row_that_was_not_audited_says_so(tmp_path: Path):
    assert trust.row(tmp_path, "shared", [0]).startswith("| `shared` | not audited | | |")


def test_a_page_without_marks_is_left_alone():
    with pytest.raises(SystemExit, match="no marks"):
        trust.put_between("a page", "a table")


def test_the_table_of_the_page_has_a_row_for_every_committed_mode_or_is_not_made_yet():
    text = trust.PAGE.read_text(encoding="utf-8")
    table = text.partition(trust.BEGIN)[2].partition(trust.END)[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, flags=re.M)
    assert rows in ([], trust.ordered([path.stem for path in trust.CONFIGS.glob("*.yaml")]))
