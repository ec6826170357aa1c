"""The command `--attack` refuses what makes no sense, before it opens anything."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import simulate
from fl_vitlora.attacks.results import Figure, Outcome
from fl_vitlora.reporting.attack_progress import AttackProgress
from fl_vitlora.reporting.attack_table import print_attacks


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--attack used --only spam", "did you mean 'span'"),
        ("--attack used --images none", "--images none: expected a whole number"),
        ("--attack used --images 0", "--images 0: expected a whole number"),
        ("--attack used --clients 3", "remove clients=3"),
        ("--attack used", "used contains no run"),
        ("--attack used --resume used", "audits one run, so remove --resume"),
        ("--attack used --compare head", "audits one run, so remove --compare"),
        ("--attack used --fail-if=span", "expected ATTACK.FIGURE>NUMBER"),
        ("--attack used --fail-if=spam.rank>3", "did you mean 'span'"),
        ("--attack used --only span --fail-if=verdict>=partially", "did you mean 'partly'"),
        ("--attack used --only span --fail-if=label_counts.verdict>not", "--only leaves out label"),
        ("--attack used --fail-if=span.a>many", "expected a number after the comparison"),
        ("--attack used --fail-if=span.a>nan", "expected a number after the comparison"),
        ("--attack used --attack-seconds 0", "expected a positive number of seconds"),
        ("--attack used --attack-seconds soon", "expected a positive number of seconds"),
        ("--attack-seconds 3", "--attack-seconds belongs to --attack"),
        ("--attack-pictures", "--attack-pictures belongs to --attack"),
        ("--fail-if=verdict>not", "--fail-if belongs to --attack"),
        ("--only span", "--only belongs to --attack"),
        ("--images 3", "--images belongs to --attack"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    words: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    Path("used").mkdir()
    with pytest.raises(SystemExit) as exit_:
        simulate.main(words.split())
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert told in printed.err


def test_the_table_has_the_verdicts_the_figures_and_the_reasons():
    outcomes = [
        Outcome(
            attack="second_order",
            adversary="worker",
            victims=3,
            figures=[
                Figure(name="images decrypted", value=100, floor=0, ceiling=100),
                Figure(name="rank", value=15.16, unit=""),
            ],
        ),
        Outcome(attack="span", adversary="server", reason="the server has only sums"),
        Outcome(attack="slow", adversary="server", reason="its budget ended", out_of_time=True),
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    print_attacks(outcomes, "runs/one", console)
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines == [
        "                                               found  by chance  at best",
        "second_order, worker (mean of 3): recovered",
        "  images decrypted                           100.0 %      0.0 %  100.0 %",
        "  rank                                          15.2          -        -",
        "",
        "not applicable",
        "span, server    the server has only sums",
        "",
        "out of time",
        "slow, server    its budget ended",
        "",
        "attacks  runs/one/attacks.json, with the rule of the verdicts",
    ]


def test_a_terminal_shows_which_attack_is_carried_out():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with AttackProgress(2, console) as progress:
        for adversary in ("server", "worker"):
            progress.began("span", adversary)
        progress.began("slow", "server")
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "attack 2 of 2: slow, server" in told
    silent = Console(file=io.StringIO())
    with AttackProgress(1, silent) as progress:
        progress.began("span", "server")
    assert silent.file.getvalue() == ""  # type: ignore[attr-defined]
