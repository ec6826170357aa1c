"""The report of a run: one file that says what the run folder says, and asks for nothing."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.attacks.results import RULE, Figure, Outcome
from fl_vitlora.command_line import tools
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.attacking import ATTACKS, described
from fl_vitlora.experiment.classification import of_clients
from fl_vitlora.experiment.result import counted
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.library.finished import load_run
from fl_vitlora.reporting.plots import LABELS
from fl_vitlora.reporting.report.run_files import address_of
from fl_vitlora.reporting.report.writing import write_report
from tests.browser import browser_page, chromium
from tests.whole_runs import Finished, execute

HOSTILE = "</script><script>document.title='ran'</script><img src=x onerror=document.title='ran'>"
LOADS = {"src", "srcset", "href", "data", "action", "poster", "background", "formaction"}


class Parsed(HTMLParser):
    """What stands in a page, as a browser divides it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.scripts: dict[str, str] = {}
        self.styles: list[str] = []
        self._inside: tuple[str, str] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [(f"{tag} {name}", v) for name, v in known.items() if name in LOADS]
        self.styles += [known["style"]] if "style" in known else []
        assert not [name for name in known if name.startswith("on")]
        if tag in ("script", "style"):
            self._inside = tag, known.get("id", str(len(self.scripts)))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.texts.append(data)
        elif self._inside[0] == "style":
            self.styles.append(data)
        else:
            self.scripts[self._inside[1]] = self.scripts.get(self._inside[1], "") + data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def chart(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[f"data-{name}"])
        return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Finished:
    return execute(tmp_path_factory.mktemp("reported"), engine)


@pytest.fixture(scope="module")
def page(finished: Finished) -> Path:
    return load_run(finished.folder).report()


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    others = shutil.ignore_patterns("report.html")
    return Path(shutil.copytree(finished.folder, tmp_path / "run", ignore=others))


def change(folder: Path, **entries: Any) -> None:
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | entries))


def test_a_report_loads_nothing(page: Path):
    parsed = Parsed(page)
    assert parsed.addresses == [("link href", "data:,")]
    assert not re.findall(r"url\(|@import", " ".join(parsed.styles))


def test_a_report_has_the_figures_of_the_run(finished: Finished, page: Path):
    parsed, result = Parsed(page), finished.result
    for told in (
        f"test accuracy {100 * result['accuracy']:.2f} %",
        f"macro F1 {100 * result['classification']['macro_f1']:.2f} %",
        f"saving {result['communication']['saving']:.1f}x",
        "4 clients fine-tuned the model vit_letters_16 on encrypted images",
        "No update of a client failed.",
        "arXiv 2507.11943",
        (finished.folder / "config.yaml").read_text().split("\n")[0],
    ):
        assert told in parsed.text
    assert parsed.text.count("test images") >= 1
    assert str(Path.cwd()) not in parsed.text.replace(str(finished.folder), "")


def test_the_curve_of_bytes_ends_at_the_sums_of_the_run_and_of_full_fine_tuning(
    finished: Finished, page: Path
):
    wire = finished.result["communication"]
    own, full = Parsed(page).chart("bytes")["data"]
    assert own["y"][-1] * 1e6 == pytest.approx(wire["uplink_bytes"] + wire["downlink_bytes"])
    assert full["y"][-1] * 1e6 == pytest.approx(wire["full_fine_tuning_bytes"])
    assert len(own["y"]) == len(full["y"]) == 1 + finished.result["rounds"]


def test_charts_have_the_numbers_of_the_rounds_and_of_the_clients(finished: Finished, page: Path):
    parsed = Parsed(page)
    (accuracy,) = parsed.chart("accuracy")["data"]
    assert accuracy["y"] == [100 * line["accuracy"] for line in finished.lines]
    (partition,) = parsed.chart("partition")["data"]
    shares = [sum(row) for row in partition["z"]]
    told = finished.result["largest_share"]
    assert shares.index(max(shares)) == told["client"]
    assert max(shares) / sum(shares) == pytest.approx(told["share"])
    (matrix,) = parsed.chart("confusion")["data"]
    told = [[images for _, _, images in row] for row in matrix["customdata"]]
    assert told == finished.result["classification"]["confusion_matrix"]


def test_hostile_names_are_shown_and_do_not_run(finished: Finished, copy: Path, tmp_path: Path):
    """A class name is also in the data of a chart, which is in a script element."""
    place = copy.rename(tmp_path / "<img src=x onerror=alert(1)>")
    names = [HOSTILE, *finished.result["class_names"][1:]]
    table = place / "plots" / LABELS
    table.write_text(table.read_text().replace(",0,", f',"{HOSTILE}",'))
    failures = {"updates": 1, "clients": {"0": 1}, "reasons": {"0": HOSTILE}}
    change(place, class_names=names, failures=failures, warnings=[HOSTILE], strategy=HOSTILE)
    before, after = Parsed(load_run(finished.folder).report()), Parsed(write_report(place))
    assert after.tags.count("script") == before.tags.count("script") + 1  # the chart of failures
    assert "img" not in after.tags
    assert after.text.count(HOSTILE) == 4
    assert place.name in after.text
    assert "&lt;/script&gt;" in json.dumps(after.chart("confusion"))


def test_results_of_older_versions_have_a_report_with_less(copy: Path):
    result = json.loads((copy / "result.json").read_text())
    for name in ("classification", "client_accuracy"):
        del result[name]
    del result["communication"]["full_fine_tuning_by_round"]
    (copy / "result.json").write_text(json.dumps(result))
    (copy / "plots" / LABELS).unlink()
    parsed = Parsed(write_report(copy))
    assert "data-confusion" not in parsed.scripts
    assert parsed.tags.count("img") == 1  # the plot of the labels takes the place of the chart
    total = result["communication"]["full_fine_tuning_bytes"]
    assert parsed.chart("bytes")["data"][1]["y"][-1] * 1e6 == pytest.approx(total)


def test_a_run_that_clients_evaluate_shows_each_client_and_no_classes(copy: Path):
    answers = [Answer(k, 10, {RIGHT_KEY: (share, 1.0)}) for k, share in enumerate((0.9, 0.5, 0.7))]
    change(copy, classification=None, client_accuracy=of_clients(answers))
    parsed = Parsed(write_report(copy))
    assert "worst tenth of clients 50.00 %" in parsed.text
    assert "deviation over clients 16.33 points" in parsed.text  # the root of 0.08 / 3
    (bars,) = parsed.chart("clients")["data"]
    assert bars["y"] == [50.0, 70.0, 90.0]
    assert [client for client, _ in bars["customdata"]] == [1, 2, 0]
    assert "data-confusion" not in parsed.scripts


def test_failures_are_shown_by_round_and_by_client(copy: Path):
    lines = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
    lines[1]["failures"] = [{"client": 3, "reason": "late"}, {"client": 2, "reason": "lost"}]
    (copy / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    change(copy, failures=counted(lines))
    parsed = Parsed(write_report(copy))
    assert parsed.chart("failures")["data"][0]["y"] == [0, 2]
    assert "3 late 1" in parsed.text
    assert "No update of a client failed." not in parsed.text


def test_a_picture_of_the_run_folder_is_in_the_report(copy: Path):
    picture = (copy / "plots" / "confusion_matrix.png").read_bytes()
    (copy / "plots" / "plain_and_encrypted.png").write_bytes(picture)
    (copy / "plots" / "elsewhere.png").symlink_to(copy / "plots" / "confusion_matrix.png")
    parsed = Parsed(write_report(copy))
    assert [kind for kind, _ in parsed.addresses] == ["link href", "img src"]
    assert parsed.addresses[1][1] == address_of(copy / "plots/plain_and_encrypted.png")
    assert "plain and encrypted" in parsed.text


def test_verdicts_of_attacks_are_in_the_report(copy: Path):
    figure = Figure(name="pixels right", value=97.5, floor=10.0, ceiling=100.0)
    outcomes = [
        Outcome(attack="span", adversary="server", figures=(figure,)),
        Outcome(attack="jigsaw", adversary="thief", reason="there are no blocks"),
    ]
    told = {"images": 10, "rule": RULE, "attacks": [described(one) for one in outcomes]}
    (copy / ATTACKS).write_text(json.dumps(told))
    text = Parsed(write_report(copy)).text
    assert "span server recovered pixels right: 97.5 % (by chance 10.0 %, at best 100.0 %)" in text
    assert "jigsaw thief not applicable there are no blocks" in text


def test_pictures_of_attacks_are_in_the_report_if_the_last_audit_drew_them(copy: Path):
    folder = copy / "attack_pictures"
    folder.mkdir()
    for name in ("old.png", "secret.png", "span-server.png"):
        (folder / name).write_bytes(b"\x89PNG " + name.encode())
    (folder / "link.png").symlink_to(folder / "secret.png")
    outcome = Outcome(attack="span", adversary="server", reason="nothing")
    told = [
        described(outcome) | {"picture": picture}
        for picture in ("attack_pictures/span-server.png", "attack_pictures/link.png", None)
    ]
    (copy / "attacks.json").write_text(json.dumps({"images": 8, "rule": RULE, "attacks": told}))
    page = write_report(copy)
    parsed = Parsed(page)
    assert [address for kind, address in parsed.addresses if kind == "img src"] == [
        address_of(folder / "span-server.png")
    ]
    assert page.stat().st_mode & 0o777 == 0o600
    assert "give this page only to people who may see them" in parsed.text


@pytest.mark.parametrize("picture", ["plain_examples.png", "attack_pictures", "a link", "none"])
def test_a_page_is_private_exactly_if_it_shows_plain_images(picture: str, copy: Path):
    """A picture that the page leaves out does not make the page private."""
    plots, others = copy / "plots", copy / "attack_pictures"
    others.mkdir()
    (others / "span-server.png").write_bytes(b"\x89PNG")
    if picture == "attack_pictures":
        told = described(Outcome(attack="span", adversary="server", reason="nothing"))
        told["picture"] = "attack_pictures/span-server.png"
        audit = {"images": 8, "rule": RULE, "attacks": [told]}
        (copy / ATTACKS).write_text(json.dumps(audit))
    elif picture == "a link":
        (plots / "plain_examples.png").symlink_to(others / "span-server.png")
    elif picture != "none":
        (plots / picture).write_bytes(b"\x89PNG")
    (copy / "another file").touch()
    usual = (copy / "another file").stat().st_mode & 0o777
    expected = usual if picture in ("a link", "none") else 0o600
    assert write_report(copy).stat().st_mode & 0o777 == expected


@pytest.mark.parametrize("package", ["plotly", "jinja2"])
def test_a_missing_package_is_named_with_its_extra(
    package: str, copy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape("pip install -e '.[report]'")):
        write_report(copy)
    assert not (copy / "report.html").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "result.json").unlink(), "not finished"),
        (lambda run: (run / "config.yaml").unlink(), "contains no run and no comparison"),
        (lambda run: (run / "result.json").write_text("{"), "result.json cannot be read"),
        (lambda run: (run / "rounds.jsonl").write_text("[]\n"), "rounds.jsonl cannot be read"),
        (lambda run: change(run, communication=3), "do not have the form"),
        (lambda run: change(run, seconds={"total": float("inf")}), "do not have the form"),
        (
            lambda run: (run / "plots" / LABELS).write_text("client,class,images\n9,0,1\n"),
            "label_distribution.csv cannot be read",
        ),
    ],
)
def test_a_folder_that_cannot_be_reported_says_why_in_one_line(
    damage: Any, told: str, copy: Path, capsys: pytest.CaptureFixture[str]
):
    damage(copy)
    with pytest.raises(SystemExit) as ended:
        tools.main(["report", str(copy)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert told in said
    assert ("do not have the form" in said) == ("do not have the form" in told)
    assert said.count("\n") == 1
    assert not (copy / "report.html").exists()


def test_the_command_writes_a_report_and_vector_plots(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "for_others.html"
    tools.main(["report", str(copy), "--out", str(out), "--vector", "pdf"])
    assert out.exists()
    assert not (copy / "report.html").exists()
    plots = {path.stem for path in (copy / "plots").glob("*.png")}
    assert {path.stem for path in (copy / "plots").glob("*.pdf")} == plots
    assert (copy / "plots" / "confusion_matrix.pdf").read_bytes().startswith(b"%PDF")
    assert str(out) in capsys.readouterr().out


BROWSER = pytest.mark.skipif(
    chromium() is None, reason="no Chromium is installed, so that no browser can open the report"
)


@BROWSER
def test_a_browser_opens_a_report_without_a_request_or_an_error(page: Path, tmp_path: Path):
    with browser_page(str(chromium()), tmp_path / "profile") as seen:
        backs = []
        for width in (390, 1200):
            for dark in (False, True):
                seen.open(page, width=width, dark=dark)
                assert seen.value("document.documentElement.scrollWidth") <= width
                assert seen.value("document.querySelectorAll('[data-chart]').length") == 7
                assert seen.value("document.querySelectorAll('[data-chart] .main-svg').length") >= 7
                backs.append(seen.value("getComputedStyle(document.body).backgroundColor"))
        assert seen.complaints == []
        assert {address.split(":")[0] for address in seen.requests} <= {"file", "data", "blob"}
        assert backs[0] == backs[2] != backs[1] == backs[3]


@BROWSER
def test_a_browser_runs_nothing_of_a_hostile_name(copy: Path, finished: Finished, tmp_path: Path):
    change(copy, class_names=[HOSTILE, *finished.result["class_names"][1:]], warnings=[HOSTILE])
    (copy / "plots" / LABELS).unlink()
    with browser_page(str(chromium()), tmp_path / "profile") as seen:
        seen.open(write_report(copy), width=1200)
        assert seen.value("document.title") == "run – report"
        assert seen.value("document.querySelectorAll('img').length") == 1
        assert seen.complaints == []


@BROWSER
def test_the_browser_would_tell_of_a_request_and_of_an_error(tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text(
        "<img src='http://127.0.0.1:9/picture.png'>"
        "<script>document.documentElement.dataset.charts = 'drawn'; missing()</script>"
    )
    with browser_page(str(chromium()), tmp_path / "profile") as seen:
        seen.open(page, width=1200)
        assert "http://127.0.0.1:9/picture.png" in seen.requests
        assert [told for told in seen.complaints if "missing is not defined" in told]


@BROWSER
def test_the_policy_of_a_report_forbids_what_others_would_add(page: Path, tmp_path: Path):
    added = tmp_path / "added.html"
    more = "<img src='http://127.0.0.1:9/a.png'><script>document.title = 'ran'</script></body>"
    added.write_text(page.read_text().replace("</body>", more))
    with browser_page(str(chromium()), tmp_path / "profile") as seen:
        seen.open(added, width=1200)
        assert seen.value("document.title") != "ran"
        assert len(seen.complaints) >= 2
