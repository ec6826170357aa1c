"""Workers die, hang and fail: their bundles are answered, and nobody innocent suffers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from fl_vitlora.flower.simulation import worker_pool
from fl_vitlora.flower.simulation.ray_cluster import NICENESS
from fl_vitlora.flower.simulation.ray_environment import patient_start
from fl_vitlora.flower.simulation.worker_pool import (
    WorkerLostError,
    WorkerPool,
    end_process,
    persist,
)
from tests.waiting import WATCHDOG, wait_until

pytestmark = pytest.mark.slow

Bundle = list[int]
GO = "go"
HASTE = 1.0  # seconds that a worker has for a message to hang at
CALM = int(WATCHDOG / HASTE)  # messages as which a bundle of others counts, so that it has minutes


def answers(bundle: Sequence[int]) -> list[str]:
    return [f"answer to {number}" for number in bundle]


class Troubled:
    """Answers, but for the clients that kill it, and those whose app raises, so many times."""

    def __init__(self, deadly: dict[int, int], raising: dict[int, int]) -> None:
        self.deadly, self.raising, self.asked = dict(deadly), dict(raising), list[Bundle]()

    def __call__(self, bundle: Sequence[int]) -> list[Any]:
        self.asked.append(list(bundle))
        dead = [number for number in bundle if self.deadly.get(number, 0) > 0]
        if dead:
            self.deadly[dead[0]] -= 1
            raise WorkerLostError("the worker died")
        found: list[Any] = list(answers(bundle))
        for place, number in enumerate(bundle):
            if self.raising.get(number, 0) > 0:
                self.raising[number] -= 1
                found[place] = ValueError(f"client {number}")
        return found


def test_a_passing_trouble_leaves_the_same_answers_to_the_same_bundle():
    for troubled in (Troubled({2: 1}, {}), Troubled({}, {2: 1})):
        assert persist([1, 2, 3], troubled) == (answers([1, 2, 3]), False)
        assert troubled.asked == [[1, 2, 3], [1, 2, 3]]


def test_two_losses_leave_the_same_answers_to_the_same_bundle():
    """Were it taken apart for them, each would train alone and round otherwise."""
    troubled = Troubled({1: 1, 3: 1}, {2: 1})
    assert persist([1, 2, 3], troubled) == (answers([1, 2, 3]), False)
    assert troubled.asked == [[1, 2, 3]] * 4


def test_what_is_taken_apart_is_told_though_nobody_fails():
    troubled = Troubled({2: 3}, {})
    assert persist([1, 2, 3], troubled) == (answers([1, 2, 3]), True)
    assert troubled.asked == [[1, 2, 3]] * 3 + [[1], [2], [3]]
    assert persist([2], Troubled({2: 2}, {})) == (answers([2]), False)


def test_an_app_that_raises_again_fails_alone():
    troubled = Troubled({}, {2: 9})
    found, apart = persist([1, 2, 3], troubled)
    assert [found[0], found[2]] == answers([1, 3])
    assert isinstance(found[1], ValueError)
    assert not apart
    assert len(troubled.asked) == 2


def test_a_client_that_kills_every_worker_fails_alone():
    troubled = Troubled({2: 9}, {})
    found, apart = persist([1, 2, 3], troubled)
    assert [found[0], found[2]] == answers([1, 3])
    assert isinstance(found[1], WorkerLostError)
    assert apart
    assert troubled.asked == [[1, 2, 3]] * 3 + [[1], [2], [3]]


@given(
    bundle=st.lists(st.integers(0, 9), min_size=1, max_size=8, unique=True),
    deadly=st.dictionaries(st.integers(0, 9), st.sampled_from([1, 99])),
    raising=st.dictionaries(st.integers(0, 9), st.sampled_from([1, 99])),
)
def test_everybody_is_answered_or_blamed_and_asked_five_times_at_most(
    bundle: Bundle, deadly: dict[int, int], raising: dict[int, int]
) -> None:
    troubled = Troubled(deadly, raising)
    found, _ = persist(bundle, troubled)
    for number, answer in zip(bundle, found, strict=True):
        innocent = number not in deadly and number not in raising
        assert answer == f"answer to {number}" or (isinstance(answer, Exception) and not innocent)
    assert all(sum(number in asked for asked in troubled.asked) <= 5 for number in bundle)


@ray.remote
class WorkerState:
    """A worker that does what its message says."""

    def do(self, messages: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
        return [self._one(*message) for message in messages]

    def _one(self, what: str, name: str) -> tuple[str, int]:
        once = Path(name + ".done")
        if what == "die" or (what == "die once" and not once.exists()):
            once.touch()
            os._exit(1)
        if what == "hang":
            time.sleep(3600)
        if what == "wait":  # until the test says that all may go on
            once.touch()
            while not once.with_name(GO).exists():
                time.sleep(0.05)
        if what == "raise" or (what == "raise once" and not once.exists()):
            once.touch()
            raise ValueError(name)
        return name, os.getpid()


@ray.remote
class Slow:
    """A worker that starts when a file is there."""

    def __init__(self, gate: Path | None) -> None:
        while gate is not None and not gate.exists():
            time.sleep(0.05)

    def do(self) -> int:
        return 1


def slow(gate: Path | None = None) -> Any:
    hand: Any = Slow
    return hand.options(num_cpus=0.5).remote(gate)


class Clock:
    """A clock that can be put forward; it counts how often it is read."""

    def __init__(self) -> None:
        self.ahead, self.reads = 0.0, 0

    def monotonic(self) -> float:
        self.reads += 1
        return time.monotonic() + self.ahead


def test_the_time_of_a_worker_begins_when_it_is_up(
    up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the time that it may take for an answer is over before it has started."""
    clock = Clock()
    monkeypatch.setattr(worker_pool, "time", clock)
    monkeypatch.setattr(worker_pool, "SECONDS_TO_START", 100 * WATCHDOG)
    pool = WorkerPool([slow(tmp_path / GO)], slow, patience=WATCHDOG)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(pool.ask, lambda worker: worker.do.remote(), 1, [])
        wait_until(lambda: clock.reads > 1)  # it was handed out
        clock.ahead = 2 * WATCHDOG
        seen = clock.reads
        wait_until(lambda: clock.reads > seen + 1)
        assert not asked.done()
        (tmp_path / GO).touch()
        assert asked.result() == 1
    for hand in pool.end():
        ray.kill(hand)


def test_who_does_not_start_is_replaced(
    up: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "SECONDS_TO_START", 0.6)
    pool = WorkerPool([slow(tmp_path / "never")], slow, patience=WATCHDOG)
    with pytest.raises(WorkerLostError, match="did not start"):
        pool.ask(lambda worker: worker.do.remote(), 1, [])
    for hand in pool.end():
        ray.kill(hand)


@pytest.fixture(scope="module")
def up() -> Iterator[None]:
    with patient_start():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _system_config={"worker_niceness": NICENESS},
        )
    yield
    ray.shutdown()


class Office:
    """A pool of two, and what came of each message.

    A bundle has minutes, unless a message is to hang: then it has `HASTE` for each message.
    """

    def __init__(self) -> None:
        self.started = [self.start(), self.start()]
        ray.get([hand.__ray_ready__.remote() for hand in self.started])
        self.pool = WorkerPool(self.started[:2], self.start, HASTE)

    def start(self) -> Any:
        hand: Any = WorkerState
        return hand.options(num_cpus=1).remote()

    def close(self) -> None:
        for hand in self.pool.end():
            ray.kill(hand)

    def ask(self, bundle: Sequence[tuple[str, str]]) -> list[Any]:
        tried: list[Any] = []

        def once(messages: Sequence[tuple[str, str]]) -> list[Any]:
            hangs = any(what == "hang" for what, _ in messages)
            count = len(messages) if hangs else CALM
            return list(self.pool.ask(lambda w: w.do.remote(messages), count, tried))

        found, _ = persist(bundle, once)
        return found


def test_a_worker_that_dies_is_replaced_and_its_bundles_are_answered(
    up: None, tmp_path: Path
) -> None:
    office = Office()
    bundles = [[("work", f"{tmp_path}/{n}")] for n in range(5)]
    bundles.insert(2, [("die once", f"{tmp_path}/d"), ("work", f"{tmp_path}/e")])
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(office.ask, bundles))
    names = [[name for name, _ in answers] for answers in found]
    assert names == [[name for _, name in bundle] for bundle in bundles]
    assert office.pool.slots == 4
    office.close()


def test_a_worker_that_is_killed_from_outside_loses_nothing(up: None, tmp_path: Path) -> None:
    office = Office()
    victim = office.ask([("work", "first")])[0][1]
    bundles = [[("wait", f"{tmp_path}/{n}")] for n in range(4)]
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(office.ask, bundle) for bundle in bundles]
        wait_until(lambda: len(list(tmp_path.iterdir())) >= 2)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not is_running(victim))
        (tmp_path / GO).touch()
        found = [one.result() for one in asked]
    assert [answers[0][0] for answers in found] == [name for ((_, name),) in bundles]
    assert victim not in {answers[0][1] for answers in found}
    office.close()


def test_no_bundle_waits_for_a_slow_worker_beside_an_idle_one(up: None, tmp_path: Path) -> None:
    office = Office()
    with ThreadPoolExecutor(office.pool.slots) as threads:
        slow = threads.submit(office.ask, [("wait", f"{tmp_path}/slow")])
        wait_until((tmp_path / "slow.done").exists)
        list(threads.map(office.ask, [[("work", str(number))] for number in range(20)]))
        assert not slow.done()
        (tmp_path / GO).touch()
    office.close()


def test_who_is_asked_again_asks_the_last_that_was_hired(up: None) -> None:
    """All were killed while they were idle; a bundle is not lost to one after the other."""
    crowd = [slow() for _ in range(4)]
    ray.get([hand.__ray_ready__.remote() for hand in crowd])
    pool = WorkerPool(crowd, slow, patience=WATCHDOG)
    for hand in crowd:
        end_and_wait(hand)
    tried: list[Any] = []
    with pytest.raises(WorkerLostError):
        pool.ask(lambda worker: worker.do.remote(), 1, tried)
    assert pool.ask(lambda worker: worker.do.remote(), 1, tried) == 1
    for hand in pool.end():
        end_process(hand)


def test_who_hangs_is_ended_and_the_others_of_its_bundle_are_answered(
    up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle is taken apart at once, as each attempt waits until its patience is at an end."""
    monkeypatch.setattr(worker_pool, "LOSSES", 1)
    office = Office()
    bundles = [
        [("work", "a"), ("hang", "b")],
        [("work", "c")],
        [("work", "d")],
        [("work", "e")],
    ]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(office.ask, bundles))
    assert [answers[0][0] for answers in found] == ["a", "c", "d", "e"]
    lost = found[0][1]
    assert isinstance(lost, WorkerLostError)
    assert str(lost) == f"a worker sent no answer within {HASTE:g} s"
    office.close()


def test_what_fails_over_a_whole_bundle_is_no_death_and_is_repeated_by_another(
    up: None, tmp_path: Path
) -> None:
    """A worker may lack the memory to unpack the messages."""
    office = Office()
    (error,) = office.ask([("raise", f"{tmp_path}/always")])
    assert isinstance(error, ValueError)
    found = office.ask([("raise once", f"{tmp_path}/once"), ("work", "x")])
    assert [name for name, _ in found] == [f"{tmp_path}/once", "x"]
    assert office.pool.end() == office.started  # nobody was replaced
    for hand in office.started:
        ray.kill(hand)


def test_who_is_replaced_is_ended_so_that_its_share_is_free_for_the_other(up: None) -> None:
    """Ray may tell of an error, here that another died, though the worker lives."""
    office = Office()
    worker, dead = office.started
    ((_, process),) = ray.get(worker.do.remote([("work", "x")]))
    end_and_wait(dead, [])
    pool = WorkerPool([worker], office.start, WATCHDOG)
    with pytest.raises(WorkerLostError):
        pool.ask(lambda _: dead.do.remote([]), 1, [])
    wait_until(lambda: not is_running(process))
    for hand in pool.end():
        ray.kill(hand)


def end_and_wait(worker: Any, *message: Any) -> None:
    """Kills an idle worker and returns when Ray knows it: until then, calls may be answered."""
    ray.kill(worker)
    with pytest.raises(RayActorError):
        while True:
            ray.get(worker.do.remote(*message), timeout=WATCHDOG)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_nobody_is_asked_after_the_end(up: None, tmp_path: Path) -> None:
    office = Office()
    ended = threading.Event()

    def ask() -> None:
        with pytest.raises(RuntimeError):
            office.ask([("wait", f"{tmp_path}/begun")])
        ended.set()

    waiting = threading.Thread(target=ask, daemon=True)
    waiting.start()
    wait_until((tmp_path / "begun.done").exists)
    kept = office.pool.end()
    waiting.join(WATCHDOG)
    assert ended.is_set()
    assert len(kept) == 1
    ray.kill(kept[0])
    with pytest.raises(RuntimeError, match="simulation has ended"):
        office.ask([("work", "x")])
