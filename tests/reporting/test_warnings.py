"""A warning is shown once while a run goes, in the table at its end, and below a comparison's."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from fl_vitlora.reporting.comparison_tables import report, to_markdown
from fl_vitlora.reporting.console import ComparisonDisplay, RunDisplay
from fl_vitlora.reporting.result_table import print_result
from tests.reporting.test_statistics import record
from tests.test_reporting import LINE, RESULT

TOLD = "the model does not learn: [try] another rate"


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, _environ={})


def text_of(screen: Console) -> str:
    file = screen.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("display", [RunDisplay, ComparisonDisplay])
def test_notes_and_warnings_stay_on_the_screen(
    *, display: type[RunDisplay | ComparisonDisplay], terminal: bool
):
    screen = console(terminal=terminal)
    with display(20, screen) as shown:
        shown.note("a head in the file was left out")
        shown.announce("preparing")
        shown.show_round({**LINE, "warnings": [TOLD]})
        shown.show_round(LINE)
    assert text_of(screen).count(f"warning: {TOLD}") == 1
    assert text_of(screen).count("a head in the file was left out") == 1


@pytest.mark.parametrize("result", [RESULT, {**RESULT, "warnings": []}])
def test_a_table_without_warnings_has_no_row_for_them(result: dict[str, object]):
    screen = console(terminal=False)
    print_result(result, "runs/one", screen)
    assert "warning" not in text_of(screen)


def test_the_table_at_the_end_repeats_the_warning():
    screen = console(terminal=False)
    print_result({**RESULT, "warnings": [TOLD]}, "runs/one", screen)
    assert TOLD in text_of(screen)


def test_a_comparison_lists_warnings_below_its_table():
    fine, poor = (record(seed, 0.1, method="lora", images="plain") for seed in (0, 1))
    assert poor.result is not None
    poor = replace(poor, result={**poor.result, "warnings": [TOLD]})
    found = to_markdown(report("", [fine, poor], {"method": "lora", "images": "plain"}))
    assert f"* lora, plain, seed 1: warning: {TOLD}" in found
    assert found.count("warning") == 1
