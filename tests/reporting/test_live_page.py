"""The live page: it follows a folder that grows, on this machine alone, and shows what is there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fl_vitlora.command_line import tools
from fl_vitlora.config import load, to_yaml
from fl_vitlora.config.grid import read_grid
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import comparison
from fl_vitlora.reporting.live.grid_state import read_grid_state
from fl_vitlora.reporting.live.run_state import Files, complete_lines, read_state
from fl_vitlora.reporting.live.server import ADDRESS, LiveServer
from fl_vitlora.storage.files import Hold
from fl_vitlora.storage.locks import is_locked
from tests.browser import browser_page, chromium
from tests.served_page import ask, content, figures, served
from tests.waiting import WATCHDOG, wait_until
from tests.whole_runs import SMALL

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</script><script>document.title='ran'</script><img src=x onerror=document.title='ran'>"
TOO_WIDE = """[...document.querySelectorAll("[data-chart]")].filter((place) =>
    place.querySelector(".main-svg").clientWidth > place.clientWidth).length"""
BROWSER = pytest.mark.skipif(chromium() is None, reason="needs Chromium")


LINES = [
    {
        "round": number,
        "accuracy": accuracy,
        "loss": 1.0 / number,
        "measured_on": "test",
        "train_loss": 2.0 / number,
        "participants": [0, 1, 3],
        "failures": [],
        "uplink_bytes": 1000,
        "downlink_bytes": 2000,
        "seconds": 0.5,
    }
    for number, accuracy in ((1, 0.25), (2, 0.75))
]


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    """A run folder before its first round. `test_live_runs` follows real runs."""
    folder = tmp_path / "growing"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(load(None, SMALL)))
    (folder / "environment.json").write_text(json.dumps({"workers": 2, "device": "cpu"}))
    return folder


def end(folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps({"accuracy": 0.75}))


def append(folder: Path, text: str) -> None:
    with (folder / "rounds.jsonl").open("a") as file:
        file.write(text)


def test_the_state_of_a_run_follows_from_its_lock_and_its_result(growing: Path) -> None:
    files = Files()
    assert read_state(growing, files).state == "interrupted"
    with Hold(growing / "config.yaml"):
        assert read_state(growing, files).state == "preparing"
        append(growing, json.dumps(LINES[0]) + "\n")
        assert read_state(growing, files).state == "running"
    assert read_state(growing, files).state == "interrupted"
    end(growing)
    assert read_state(growing, files).state == "ended"


def test_a_question_about_a_lock_leaves_it_to_the_program_that_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.touch()
    stop, answers = threading.Event(), set[bool | None]()

    def look() -> None:
        while not stop.is_set():
            answers.add(is_locked(path))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(200):
            Hold(path).close()
        with Hold(path):
            wait_until(lambda: True in answers)
    finally:
        stop.set()
        thread.join()
    assert answers == {True, False}
    assert is_locked(tmp_path / "nowhere") is None


def test_a_line_counts_when_it_is_complete(growing: Path) -> None:
    first, second = (json.dumps(line) for line in LINES)
    with Hold(growing / "config.yaml"), served(growing) as server:
        found = content(server.url)
        assert figures(found)["rounds"] == "0 of 2"
        assert found["charts"][0]["told"] == "No round has measured the accuracy."
        append(growing, first + "\n" + second[:40])
        found = content(server.url)
        assert (figures(found)["rounds"], found["error"]) == ("1 of 2", "")
        append(growing, second[40:] + "\n")
        assert figures(content(server.url))["rounds"] == "2 of 2"
        (growing / "rounds.jsonl").write_text(first + "\n")  # a resumed run forgets later rounds
        assert figures(content(server.url))["rounds"] == "1 of 2"


def test_a_damaged_line_is_named_and_the_page_goes_on(growing: Path) -> None:
    with served(growing) as server:
        append(growing, '{"round": 1\n' + json.dumps(LINES[1]) + "\n")
        found = content(server.url)
        assert f"{growing / 'rounds.jsonl'}, line 1 cannot be read" in found["error"]
        (growing / "rounds.jsonl").write_text(json.dumps(LINES[0]) + "\n")
        assert content(server.url)["error"] == ""
    with pytest.raises(UserError, match="line 2: expected the line of a round"):
        complete_lines(b'{"round": 1}\n[]\n', Path("rounds.jsonl"))


@pytest.mark.parametrize("number", [float("inf"), float("nan"), 1e308])
@pytest.mark.parametrize("name", ["seconds", "accuracy", "loss", "uplink_bytes"])
def test_a_number_that_no_run_writes_is_no_error_of_the_program(
    name: str, number: float, growing: Path
) -> None:
    """The page shows the number, or says that the file does not have the expected form."""
    append(growing, json.dumps({**LINES[0], name: number}) + "\n")
    with Hold(growing / "config.yaml"), served(growing) as server:
        found = content(server.url)
    assert found["figures"] or "do not have the form" in found["error"]


def test_a_browser_that_goes_away_leaves_no_word_in_the_terminal(
    growing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(growing) as server:
        with server._lock, socket.create_connection((ADDRESS, server.server_address[1])) as browser:
            path = urlsplit(server.url).path
            browser.sendall(f"GET {path}state HTTP/1.1\r\nHost: {ADDRESS}\r\n\r\n".encode())
            at_once = struct.pack("ii", 1, 0)  # the connection is reset, as by a closed tab
            browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        assert content(server.url)["error"] == ""  # the first request has been accepted
        wait_until(lambda: not [t for t in threading.enumerate() if "request" in t.name])
    assert capsys.readouterr() == ("", "")


def test_failures_and_warnings_are_shown(growing: Path) -> None:
    line = {
        **LINES[0],
        "failures": [{"client": 3, "reason": HOSTILE}],
        "warnings": ["the model does not learn"],
    }
    append(growing, json.dumps(line) + "\n")
    with served(growing) as server:
        found = content(server.url)
    assert figures(found)["failed updates"] == "1"
    assert found["tables"][1]["rows"] == [["1", "3", HOSTILE]]
    assert found["remarks"] == ["the model does not learn"]


def test_an_interrupted_comparison_says_so(tmp_path: Path) -> None:
    grid = read_grid({"compare": {"finetuning.method": ["head", "lora"]}}, SMALL)
    comparison.prepare_folder(tmp_path / "grid", grid).close()
    (tmp_path / "grid" / "head-seed7").mkdir()
    config = load(None, {**SMALL, "finetuning.method": "head"})
    (tmp_path / "grid" / "head-seed7" / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "grid" / "head-seed7" / "environment.json").write_text("{}")
    found = read_grid_state(tmp_path / "grid", Files())
    assert found.state == "interrupted"
    assert [run.state for run in found.runs] == ["interrupted", "waiting"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.2:{port}", ""])
def test_a_request_that_names_another_host_is_refused(growing: Path, host: str) -> None:
    """A site whose name was pointed at 127.0.0.1 sends its own name (DNS rebinding)."""
    with served(growing) as server:
        name = host.format(port=server.server_address[1])
        for path in (urlsplit(server.url).path, urlsplit(server.url).path + "state"):
            status, body, _ = ask(server.url, path, Host=name)
            assert status == 403
            assert b"rounds" not in body


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:9"])
def test_a_tunnel_to_this_machine_may_have_another_port(growing: Path, host: str) -> None:
    with served(growing) as server:
        name = host.format(port=server.server_address[1])
        assert ask(server.url, Host=name)[0] == 200


def test_a_page_of_another_site_gets_nothing(growing: Path) -> None:
    with served(growing) as server:
        for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
            assert ask(f"{server.url}state", Sec_Fetch_Site=site)[0] == status
        headers = ask(f"{server.url}state")[2]
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "STATE"])
def test_only_get_is_answered(growing: Path, method: str) -> None:
    with served(growing) as server:
        status, _, headers = ask(f"{server.url}state", method=method)
        assert status == 405
        assert headers["allow"] == "GET"


def test_no_path_leads_to_a_file(growing: Path) -> None:
    secret = growing / "secret.txt"
    secret.write_text("the content of a file")
    with served(growing) as server:
        word = server.word
        for path in (
            "/",
            "/state",
            f"/{word}",
            f"/{word}/../{word}/state",
            f"/{word}/secret.txt",
            f"/{word}/%2e%2e/growing/secret.txt",
            f"/{word}/../../../../../../etc/passwd",
            f"/{word}/state?x",
            f"/{word[:-1]}/",
            str(secret),
            secret.as_uri(),
        ):
            status, body, _ = ask(server.url, path)
            assert status == 404, path
            assert body == b"there is no such page\n"


def test_the_server_listens_at_one_address_and_two_servers_have_other_words(growing: Path) -> None:
    with served(growing) as server, served(growing) as other:
        assert server.server_address[0] == ADDRESS == "127.0.0.1"
        assert server.word != other.word
        assert len(server.word) >= 22
        with pytest.raises(UserError, match="cannot be used: Address already in use"):
            LiveServer(growing, server.server_address[1])


def test_unchanged_content_is_not_sent_again(growing: Path) -> None:
    with served(growing) as server:
        mark = ask(f"{server.url}state")[2]["etag"]
        status, body, _ = ask(f"{server.url}state", If_None_Match=mark)
        assert (status, body) == (304, b"")
        append(growing, json.dumps(LINES[0]) + "\n")
        assert ask(f"{server.url}state", If_None_Match=mark)[0] == 200


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_folder_without_a_run_is_refused_in_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as ended:
        tools.main(["watch", str(tmp_path / name)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "contains no run and no comparison" in line


def test_the_folder_of_a_search_names_its_newest_trial(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search.yaml").write_text("trials: 3\n")
    for name, begun in ((None, 0), ("trial-00001", 2), ("trial-00000", 1)):
        if name is not None:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.yaml").write_text("rounds: 1\n")
            os.utime(tmp_path / name / "config.yaml", (begun, begun))
        with pytest.raises(SystemExit) as ended:
            tools.main(["watch", str(tmp_path)])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{tmp_path} is the folder of a search; expected one of its trials" in line
        assert line.endswith("trial-00001" if name else "none has begun")


def test_a_folder_that_goes_away_is_named(growing: Path) -> None:
    with served(growing) as server:
        shutil.rmtree(growing)
        assert "contains no run" in content(server.url)["error"]


def test_the_command_prints_the_address_and_ctrl_c_ends_it(growing: Path) -> None:
    code = "from fl_vitlora.command_line.tools import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "watch", str(growing)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split(" is shown at ")[1].split()[0]
        assert content(url)["state"] == "interrupted"
        append(growing, json.dumps(LINES[0]) + "\n")
        assert figures(content(url))["rounds"] == "1 of 2"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=WATCHDOG)
    assert process.returncode == 130
    assert told == "fl-vitlora: interrupted\n"


@BROWSER
def test_a_browser_draws_the_run_and_its_next_round_and_asks_nobody_else(
    growing: Path, tmp_path: Path
) -> None:
    program = chromium()
    assert program is not None
    rounds = "[...document.querySelectorAll('#figures dd')][0].textContent"
    points = "document.getElementById('chart-accuracy').data[0].y.length"
    with (
        Hold(growing / "config.yaml"),
        served(growing) as server,
        browser_page(program, tmp_path / "profile") as seen,
    ):
        seen.open(server.url, width=1200)
        assert seen.value("document.getElementById('state').textContent") == "preparing"
        for number, line in enumerate(LINES, start=1):
            append(growing, json.dumps({**line, "warnings": [HOSTILE]}) + "\n")
            wait_until(lambda n=number: seen.value(rounds) == f"{n} of 2")  # type: ignore[misc]
            wait_until(lambda n=number: seen.value(points) == n)  # type: ignore[misc]
        assert seen.value("document.getElementById('state').textContent") == "running"
        assert seen.value("document.querySelectorAll('[data-chart] .main-svg').length") >= 4
        assert seen.value("document.querySelectorAll('img').length") == 0
        assert seen.value("document.querySelector('#remarks li').textContent") == HOSTILE
        assert seen.value("document.title") == "running: growing"
        end(growing)
        state = "document.getElementById('state').textContent"
        wait_until(lambda: seen.value(state) == "ended")
        for width in (390, 1200):
            for dark in (False, True):
                seen.open(server.url, width=width, dark=dark)
                assert seen.value("document.documentElement.scrollWidth") <= width
                assert seen.value(TOO_WIDE) == 0
        assert seen.complaints == []
        asked = {address for address in seen.requests if address.startswith("http")}
        assert asked == {server.url, f"{server.url}state"}


@BROWSER
def test_a_browser_says_when_the_program_has_ended(growing: Path, tmp_path: Path) -> None:
    program = chromium()
    assert program is not None
    with browser_page(program, tmp_path / "profile") as seen:
        with served(growing) as server:
            seen.open(server.url, width=1200)
        told = "document.getElementById('error').textContent"
        wait_until(lambda: "does not answer" in seen.value(told))
