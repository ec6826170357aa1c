"""The list of tables: a table is old as soon as a file that decides its figures has changed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import pages, rendering
from benchmarks.tables.__main__ import main, remake
from benchmarks.tables.digests import code_alone
from benchmarks.tables.listing import LIST, ROOT, Entry, Listing, layout_of, read_listing
from benchmarks.tables.records import EDITED, MADE, NEVER, Records
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.comparison_tables import report
from fl_vitlora.reporting.statistics import Record

LISTED = """
code:
  training: [strategies]
tables:
  small:
    command: python simulate.py --config configs/small.yaml
    layout: {rows: [method], columns: [accuracy]}
  printed:
    command: python benchmarks/small.py
    code: []
    printed: 0
  wanting:
    command: python benchmarks/small.py
    code: []
    needs: a GPU
    by_hand: copy the figures
"""
PAGE = """# Results

<!-- table: small -->
| method | accuracy % |
|---|--:|
| lora | 95.00 |

Text between.

<!-- table: printed -->
| n | % |
|--:|--:|
| 1 | 50 |

<!-- table: wanting -->
| n | % |
|--:|--:|
| 1 | 60 |
"""
PROGRAM = 'print("the table", "| n | share |", "|--:|--:|", "| 2 | 75 |", "the end", sep="\\n")\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Returns a small repository with two tables that were made on the first of May."""
    for name, text in {
        str(LIST): LISTED,
        "docs/results.md": PAGE,
        "configs/small.yaml": "# a comment\nclients: 20\n",
        "strategies/fedavg.py": '"""FedAvg."""\n\nrate = 1\n',
        "benchmarks/small.py": PROGRAM,
        "simulate.py": "run()\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    records = records_of(tmp_path)
    for name in ("small", "printed", "wanting"):
        assert records.reasons(name) == [NEVER]
        records.record(name, records.digests(name), date(2026, 5, 1))
    return tmp_path


def records_of(root: Path) -> Records:
    return Records.read(read_listing(root), root)


def changed(old: str, new: str) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


def test_a_table_that_was_just_made_is_not_old(root: Path) -> None:
    records = records_of(root)
    assert [records.reasons(name) for name in ("small", "printed")] == [[], []]
    assert records.day("small") == "2026-05-01"
    assert (root / MADE).read_text().count('"made"') == 3


@pytest.mark.parametrize(
    ("path", "change", "expected"),
    [
        ("configs/small.yaml", changed("20", "21"), "configs/small.yaml has changed"),
        ("strategies/fedavg.py", changed("rate = 1", "rate = 2"), "strategies has changed"),
        ("docs/results.md", changed("95.00", "96.00"), EDITED),
    ],
)
def test_a_changed_configuration_code_or_figure_makes_its_table_old_and_no_other(
    root: Path, path: str, change: Callable[[Path], object], expected: str
) -> None:
    change(root / path)
    records = records_of(root)
    assert records.reasons("small") == [expected]
    assert records.reasons("printed") == []


def test_a_new_file_of_the_code_makes_a_table_old(root: Path) -> None:
    (root / "strategies" / "other.py").write_text("rate = 3\n")
    assert records_of(root).reasons("small") == ["strategies has changed"]


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("configs/small.yaml", changed("a comment", "another comment")),
        ("strategies/fedavg.py", changed("FedAvg.", "The mean of the updates.")),
        ("strategies/fedavg.py", changed("rate = 1", "rate = 1  # of the server\n")),
        ("docs/results.md", changed("Text between.", "Another text.")),
        ("docs/results.md", changed("95.00", "**95.00**")),
    ],
)
def test_words_and_comments_make_no_table_old(
    root: Path, path: str, change: Callable[[Path], object]
) -> None:
    change(root / path)
    records = records_of(root)
    assert [records.reasons(name) for name in ("small", "printed")] == [[], []]


def test_a_table_is_made_again_by_its_command_and_is_not_old_then(root: Path) -> None:
    changed("75", "80")(root / "benchmarks/small.py")
    records = records_of(root)
    assert records.reasons("printed") == ["benchmarks/small.py has changed"]
    remake(read_listing(root), records, ["printed"])
    assert (root / "docs/results.md").read_text() == PAGE.replace("| 1 | 50 |", "| 2 | 80 |")
    assert records_of(root).reasons("printed") == []


def test_what_cannot_be_made_by_a_program_alone_or_fails_is_one_line(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing, records = read_listing(root), records_of(root)
    with pytest.raises(UserError, match="table wanting: it needs a GPU"):
        remake(listing, records, ["wanting"])
    (root / "benchmarks/small.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(UserError, match=r"exit code 3: python benchmarks/small\.py"):
        remake(listing, records_of(root), ["printed"])
    assert (root / "docs/results.md").read_text() == PAGE
    assert main(["--remake", "papers"]) == 2
    assert "did you mean 'paper'" in capsys.readouterr().err


def test_a_hash_sign_in_a_text_is_no_comment() -> None:
    assert code_alone('a = "# one"  # two\n') == 'a = "# one"'
    assert code_alone("class A:\n    '''Two\n    lines.'''\n\n    b = 1\n") == "class A:\n    b = 1"


def test_a_table_gets_new_rows_and_keeps_its_head_and_the_rest_of_the_page(root: Path) -> None:
    page = pages.page_of("table: small", root)
    pages.replace(page, "table: small", ["| lora | 96.10 |", "| head | 91.00 |"])
    assert page.read_text() == PAGE.replace(
        "| lora | 95.00 |", "| lora | 96.10 |\n| head | 91.00 |"
    )
    with pytest.raises(UserError, match="does not fit the head"):
        pages.replace(page, "table: small", ["| lora | 96.10 | 3 |"])
    with pytest.raises(UserError, match="found it 0 times"):
        pages.page_of("table: other", root)


def test_the_rows_of_a_printed_table_need_the_columns_of_the_page() -> None:
    output = "first\n| n | % |\n|--:|--:|\n| 1 | 2 |\nthen\n| a |\n|---|\n| b |\n"
    assert rendering.printed_rows(output, 0, "| n | share |") == ["| 1 | 2 |"]
    assert rendering.printed_rows(output, 1, "| x |") == ["| b |"]
    with pytest.raises(UserError, match="the page has the head"):
        rendering.printed_rows(output, 1, "| n | share |")
    with pytest.raises(UserError, match="printed 2 tables"):
        rendering.printed_rows(output, 2, "| n |")


def result(accuracy: float) -> dict[str, Any]:
    sizes = {"uplink_bytes": 600_000, "downlink_bytes": 400_000, "full_fine_tuning_bytes": 10**7}
    return {
        "accuracy": accuracy,
        "trainable_parameters": 1234,
        "total_parameters": 9999,
        "seconds": {"total": 30.0},
        "communication": {**sizes, "saving": 10.0, "saving_with_flower": 9.0},
    }


def comparison() -> Any:
    found = {("lora", "plain"): 0.9, ("lora", "EtC"): 0.8, ("head", "plain"): 0.95}
    records = [
        Record(labels={"method": m, "images": i}, seed=seed, result=result(a + seed / 100))
        for (m, i), a in found.items()
        for seed in (0, 2)
    ]
    records.append(Record(labels={"method": "head", "images": "EtC"}, seed=0, problem="refused"))
    return report("", records, {"method": "lora", "images": "plain"})


def test_the_rows_of_a_comparison_are_those_that_the_layout_asks_for() -> None:
    layout = rendering.Layout(
        rows=("method",),
        columns=("accuracy", "difference", "trained", "megabytes", "saving"),
        where={"images": "plain"},
        compared="method",
        names={"lora": "LoRA"},
        best_first=True,
        backticks=True,
    )
    assert rendering.rows_of(comparison(), layout, "") == [
        "| `head` | 96.00 ± 1.41 | +5.00 ± 0.00 | 1,234 | 1.0 | 10.0x |",
        "| LoRA | 91.00 ± 1.41 |  | 1,234 | 1.0 | 10.0x |",
    ]
    other = rendering.rows_of(comparison(), replace(layout, where={}, without="head"), "")
    assert [row.split(" | ")[2] for row in other] == ["", ""]  # of lora with itself
    along = replace(layout, where={}, without="head", compared="images")
    assert (
        "| LoRA | 81.00 ± 1.41 | -10.00 ± 0.00 |" in rendering.rows_of(comparison(), along, "")[1]
    )
    with pytest.raises(UserError, match="expected the key compared"):
        rendering.rows_of(comparison(), replace(layout, compared=""), "")
    refused = replace(layout, where={"images": "EtC"})
    with pytest.raises(UserError, match="no run has a result"):
        rendering.rows_of(comparison(), refused, "")
    records = [r for r in comparison().records if r.seed == 0 or r.labels["method"] == "head"]
    some = Record(labels={"method": "lora", "images": "plain"}, seed=2, problem="it ended")
    partial = report("", [*records, some], {"method": "lora", "images": "plain"})
    with pytest.raises(UserError, match="some seeds have no result"):
        rendering.rows_of(partial, layout, "")
    with pytest.raises(UserError, match="unknown axis"):
        rendering.rows_of(comparison(), replace(layout, rows=("metod",)), "")  # codespell:ignore
    with pytest.raises(UserError, match="unknown figure"):
        rendering.rows_of(comparison(), replace(layout, columns=("accurate",)), "")


def test_the_size_of_a_message_is_that_of_the_last_round_of_each_run(tmp_path: Path) -> None:
    records = []
    for seed, last in enumerate((6000, 8000)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        lines = ({"uplink_bytes": size, "participants": [0, 3]} for size in (9_999_999, last))
        (folder / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        labels = {"method": "lora"}
        records.append(Record(labels=labels, seed=seed, result=result(0.9), folder=folder))
    layout = rendering.Layout(rows=("method",), columns=("message",))
    found = rendering.rows_of(report("", records, {"method": "lora"}), layout, "")
    assert found == ["| lora | 3.5 |"]


def test_a_table_across_an_axis_has_the_columns_of_the_page() -> None:
    layout = rendering.Layout(rows=("method",), across="images")
    head = "| method | EtC | plain |"
    assert rendering.rows_of(comparison(), layout, head) == [
        "| lora | 81.00 ± 1.41 | 91.00 ± 1.41 |",
        "| head | refused | 96.00 ± 1.41 |",
    ]
    with pytest.raises(UserError, match="the head has the columns"):
        rendering.rows_of(comparison(), layout, "| method | EtC | LE |")


def test_a_list_that_names_no_file_or_no_way_is_refused(root: Path) -> None:
    entry = Entry(command="python benchmarks/small.py", code=("lost.py",), printed=0)
    with pytest.raises(UserError, match=r"no file or folder lost\.py"):
        Listing(tables={"a": entry}, code={}).files("a", root)
    (root / LIST).write_text(LISTED.replace("    printed: 0\n", ""))
    with pytest.raises(UserError, match="expected one of layout, printed"):
        read_listing(root)


def test_every_table_of_figures_has_an_entry_and_its_command_is_on_its_page() -> None:
    listing = read_listing()
    assert pages.unmarked(ROOT) == [], "add a mark above the table, and an entry to the list"
    marked = dict(pages.marks(ROOT))
    names = {listing.mark(name): name for name in listing.tables}
    assert set(marked) == set(names)
    for mark, name in names.items():
        entry = listing.table(name)
        assert listing.files(name), name
        if entry.layout is not None:
            layout_of(name, entry)
        text = re.sub(r"\\\n\s*", "", marked[mark].read_text(encoding="utf-8"))
        script = re.search(r"(\S+\.py|-m \S+)( --config \S+)?", entry.command)
        assert script is not None
        assert name in ELSEWHERE or script[0] in text, name


# Commands that their page describes in words.
ELSEWHERE = ("start_of_shards", "default_rates", "learning_rates", "peft_tuners")
