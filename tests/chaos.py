"""Chaos: whole runs that are disturbed at random moments, and what becomes of them.

    python -m tests.chaos --runs 100

Each run is one small experiment, and one fault drawn by its seed. It is resumed until it ends, or
until it stops for good. It must end with the bits of the undisturbed run and with every round told
once; or, where what was destroyed there was but one of, stop with one line that says why. Nothing
may take longer than a watchdog allows. The table is in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.processes import command, named, wait_for_end
from tests.waiting import WATCHDOG

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 12
SECONDS_TO_VANISH = 120.0
MOST_RESUMES = 6
SMALL = [
    *("--clients", "6", "--rounds", str(ROUNDS), "--workers", "2", "--device", "cpu"),
    *("--set", "data.limit=120"),
]
SOON = ["--set", "engine.client_timeout=20"]  # after which a worker that hangs is replaced
JOBS: dict[str, list[str]] = {
    "fedavg": [],
    "coded": [
        *("--set", "compression.uplink=topk(0.2)+int4", "--set", "compression.downlink=int8"),
    ],
    "scaffold": ["--strategy", "scaffold"],
    "fedsa_lora": ["--strategy", "fedsa_lora"],
    "flora": ["--strategy", "flora", "--fraction", "0.5"],
    "secure sums": ["--set", "privacy.secure_aggregation=true"],
}
TWENTY = {"twenty clients": ["--clients", "20", "--set", "data.limit=400"]}  # is not drawn


@dataclass
class Program:
    """One command that runs, watched.

    Attributes:
        process: It.
        errors: What it writes to its standard error goes there.
        begin: When it began.
    """

    process: subprocess.Popen[bytes]
    errors: Path
    begin: float

    @property
    def text(self) -> str:
        """Reads what it wrote to its standard error."""
        return self.errors.read_text(errors="replace").strip()

    def is_going(self) -> bool:
        """Returns True if the process has not ended."""
        return self.process.poll() is None

    def wait_until(self, moment: Callable[[], bool]) -> bool:
        """Waits until something is so, or the program has ended; tells whether it is so."""
        while self.is_going() and not moment():
            if time.monotonic() - self.begin > WATCHDOG:
                self.process.kill()
                raise TimeoutError
            time.sleep(0.02)
        return moment()

    def end(self) -> int:
        """Waits for its end."""
        self.wait_until(lambda: False)
        return self.process.wait()

    def kill(self) -> None:
        """Kills it as the system does, and waits until all that computes for it is gone."""
        below = named(self.process.pid, "ray::Worker", "ray::IDLE", "raylet", "gcs_server")
        self.process.kill()
        self.process.wait()
        if left := wait_for_end(below, SECONDS_TO_VANISH):
            raise RuntimeError(f"it left processes behind: {[command(one) for one in left]}")


@dataclass(frozen=True)
class Undisturbed:
    """What a run is that nothing happens to.

    Attributes:
        digest: The digest of its final model.
        seconds: The time that it takes.
    """

    digest: str
    seconds: float


class Case:
    """One run that is disturbed.

    Args:
        place: A folder of its own.
        key: The owner's key ring.
        job: One of `JOBS` or `TWENTY`.
        expected: The same run without a disturbance.
        draw: The generator of all that is left to chance.

    Attributes:
        settings: More arguments of the run, which change no bit of it.
    """

    def __init__(
        self, place: Path, key: Path, job: str, expected: Undisturbed, draw: random.Random
    ) -> None:
        self.place, self.run = place, place / "run"
        self.settings: list[str] = []
        self.key, self.job, self.expected, self.draw = key, job, expected, draw

    def start(self) -> Program:
        """Starts the run, or goes on with it where it has begun."""
        begun = (self.run / "config.yaml").exists()
        asked = ["--resume", str(self.run)] if begun else self.command
        errors = self.place / "errors.txt"
        with errors.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "simulate.py"), *asked],
                cwd=self.place,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        return Program(process, errors, time.monotonic())

    @property
    def command(self) -> list[str]:
        """Returns the arguments of the run."""
        key = f"encryption.key_file={self.key}"
        job = [*SMALL, *(JOBS | TWENTY)[self.job], *self.settings]
        return [*job, "--set", key, "--out", str(self.run)]

    def rounds(self) -> int:
        """Counts the rounds that are told so far."""
        path = self.run / "rounds.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def any_moment(self) -> Callable[[], bool]:
        """Draws a moment, half of the times within the rounds."""
        if self.draw.random() < 0.5:
            return self.within_the_rounds()
        due = time.monotonic() + self.draw.uniform(0.0, self.expected.seconds)
        return lambda: time.monotonic() > due

    def within_the_rounds(self) -> Callable[[], bool]:
        """Draws a moment after some round and before the next ones have ended."""
        number, later = self.draw.randrange(1, ROUNDS - 1), self.draw.uniform(0.0, 0.4)
        seen: list[float] = []

        def come() -> bool:
            if not seen and self.rounds() >= number:
                seen.append(time.monotonic())
            return bool(seen) and time.monotonic() > seen[0] + later

        return come


def tell(process: int, number: signal.Signals) -> None:
    """Sends a signal to a process, unless it has ended: a run may end while it is looked for."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


# Faults: each disturbs a run that has been started, and returns when it has ended.


def kill_driver(case: Case) -> None:
    """The program is killed, once or twice."""
    for _ in range(case.draw.randint(1, 2)):
        program = case.start()
        if not program.wait_until(case.any_moment()):
            return
        program.kill()


def kill_workers(case: Case, most: int) -> None:
    """One worker process, or both, are killed."""
    program = case.start()
    if program.wait_until(case.within_the_rounds()):
        workers = named(program.process.pid, "ray::Worker")
        for worker in case.draw.sample(workers, min(most, len(workers))):
            tell(worker, signal.SIGKILL)
    program.end()


def kill_ray(case: Case, name: str) -> None:
    """A process of Ray's own is killed."""
    program = case.start()
    if program.wait_until(case.within_the_rounds()):
        for process in named(program.process.pid, name):
            tell(process, signal.SIGKILL)
    program.end()


def interrupt(case: Case) -> None:
    """Ctrl-C, once or twice, or a polite request to end."""
    program = case.start()
    number = case.draw.choice([signal.SIGINT, signal.SIGTERM])
    if program.wait_until(case.any_moment()):
        for _ in range(case.draw.randint(1, 2)):
            os.killpg(program.process.pid, number)
            time.sleep(case.draw.uniform(0.0, 0.3))
    program.end()


def freeze_worker(case: Case) -> None:
    """A worker hangs: it is stopped and does not go on."""
    case.settings = SOON
    program = case.start()
    if program.wait_until(case.within_the_rounds()) and (
        workers := named(program.process.pid, "ray::Worker")
    ):
        tell(case.draw.choice(workers), signal.SIGSTOP)
    program.end()


def corrupt(case: Case, where: str) -> None:
    """The program is killed, and a file is damaged before it goes on."""
    program = case.start()
    if not program.wait_until(case.within_the_rounds()):
        return
    program.kill()
    files = sorted(path for path in case.run.glob(where) if path.is_file())
    if not files:
        return
    path = case.draw.choice(files)
    data = bytearray(path.read_bytes())
    if not data or case.draw.random() < 0.3:
        path.write_bytes(data[: case.draw.randrange(len(data))] if data else b"?")
        return
    data[case.draw.randrange(len(data))] ^= 1 << case.draw.randrange(8)
    path.write_bytes(data)


def fill_disk(case: Case) -> None:
    """The system does not let the program's files grow beyond a size any more."""
    program = case.start()
    if program.wait_until(case.any_moment()):
        most = case.draw.choice([0, 500, 5_000, 50_000])
        resource.prlimit(program.process.pid, resource.RLIMIT_FSIZE, (most, most))
    program.end()


def leave_alone(case: Case) -> None:
    """Nothing happens."""
    case.start().end()


FAULTS: dict[str, Callable[[Case], None]] = {
    "driver killed (SIGKILL)": kill_driver,
    "one worker killed": functools.partial(kill_workers, most=1),
    "all workers killed": functools.partial(kill_workers, most=2),
    "a worker hangs": freeze_worker,
    "Ctrl-C or SIGTERM": interrupt,
    "Ray's node manager killed": functools.partial(kill_ray, name="raylet"),
    "Ray's control store killed": functools.partial(kill_ray, name="gcs_server"),
    "checkpoint damaged": functools.partial(corrupt, where="checkpoint/*.safetensors"),
    "journal damaged": functools.partial(corrupt, where="**/*.jsonl"),
    "shard damaged": functools.partial(corrupt, where="shards/*"),
    "any file damaged": functools.partial(corrupt, where="**/*"),
    "files may not grow": fill_disk,
}


def digest_of(run: Path) -> str:
    """Names the bits of a run: of its final model."""
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def outcome_of(case: Case, fault: Callable[[Case], None]) -> str:
    """Disturbs a run, resumes it until it ends or stops for good, and says what became of it."""
    try:
        fault(case)
        said = ""
        for _ in range(MOST_RESUMES):
            if (case.run / "result.json").exists():
                return judge(case)
            program = case.start()
            code, said = program.end(), program.text
            if code == 2:
                break
    except TimeoutError:
        return "hang"
    if (case.run / "result.json").exists():
        return judge(case)
    return "clear stop" if is_clear(said) else f"unclear: {said[-300:]}"


def judge(case: Case) -> str:
    """Compares a run that ended with the undisturbed one."""
    lines = [json.loads(line) for line in (case.run / "rounds.jsonl").read_text().splitlines()]
    if [line["round"] for line in lines] != list(range(1, ROUNDS + 1)):
        return "lost rounds"
    if any(line["failures"] for line in lines):
        return "lost updates"
    return "same bits" if digest_of(case.run) == case.expected.digest else "wrong result"


def is_clear(text: str) -> bool:
    """Returns True if a program that stopped said why, in one line."""
    return text.startswith("simulate.py: ") and len(text.splitlines()) == 1


class Chaos:
    """Disturbs runs by their seeds.

    Args:
        place: A folder for all of them.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self._key = place / "owner.key"
        self._undisturbed: dict[str, Undisturbed] = {}

    def undisturbed(self, job: str) -> Undisturbed:
        """Runs a job with nothing happening to it, once."""
        if job not in self._undisturbed:
            nothing = Undisturbed("", 0.0)
            case = Case(self._new_place(), self._key, job, nothing, random.Random(0))
            program = case.start()
            code = program.end()
            if code:
                raise RuntimeError(f"{job} fails undisturbed: {program.text}")
            seconds = time.monotonic() - program.begin
            self._undisturbed[job] = Undisturbed(digest_of(case.run), seconds)
        return self._undisturbed[job]

    def run(
        self, seed: int, fault: str | None = None, job: str | None = None
    ) -> tuple[str, str, str]:
        """Disturbs one run.

        Args:
            seed: The seed that decides what happens, and when.
            fault: One of `FAULTS`; by the seed if not given.
            job: One of `JOBS` or `TWENTY`; one of the former by the seed if not given.

        Returns:
            Fault, job and outcome.
        """
        draw = random.Random(seed)
        job = job or draw.choice(list(JOBS))
        fault = fault or list(FAULTS)[seed % len(FAULTS)]
        case = Case(self._new_place(), self._key, job, self.undisturbed(job), draw)
        outcome = outcome_of(case, FAULTS[fault])
        if outcome in {"same bits", "clear stop"}:
            shutil.rmtree(case.place)
        return fault, job, outcome

    def _new_place(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._place))


def main(argv: Sequence[str] | None = None) -> int:
    """Disturbs many runs, and prints what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--fault", choices=FAULTS, help="this one alone")
    given = parser.parse_args(argv)
    chaos = Chaos(Path(tempfile.mkdtemp(prefix="chaos-")))
    counts: dict[str, Counter[str]] = {fault: Counter() for fault in FAULTS}
    for seed in range(given.first, given.first + given.runs):
        fault, job, outcome = chaos.run(seed, given.fault)
        counts[fault][outcome.partition(":")[0]] += 1
        print(f"{seed:4}  {fault:28}  {job:12}  {outcome}", flush=True)
    found = [kind for outcomes in counts.values() for kind in outcomes]
    kinds = list(dict.fromkeys(["same bits", "clear stop", *found]))
    print(f"\n| fault | runs | {' | '.join(kinds)} |\n|---|--:|{'--:|' * len(kinds)}")
    for fault, outcomes in ((name, counted) for name, counted in counts.items() if counted):
        cells = [outcomes.total(), *(outcomes[kind] for kind in kinds)]
        print(f"| {fault} | {' | '.join(map(str, cells))} |")
    return int(bool(set(kinds) - {"same bits", "clear stop"}))


if __name__ == "__main__":
    raise SystemExit(main())
