"""Who shares which GPU. Ray is told of two that are not there: it deals them out all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fl_vitlora.flower.simulation import Workers

SEATED = """
import json, os
import ray
from flwr.clientapp import ClientApp
from fl_vitlora.flower.kept_workers import KeptWorkers
from fl_vitlora.flower.simulation import Ray, Workers

def seat(count):
    workers = Workers(device="cuda", count=count, gpus=2)
    actors = up.actors_for(workers)
    backend = KeptWorkers(actors, count, {"client_resources": workers.resources})
    backend.build(ClientApp)
    return ray.get([actor.__ray_call__.remote(place) for actor in actors], timeout=60)

def place(actor):
    return os.getpid(), ray.get_gpu_ids()

def lives(process):
    return os.path.exists(f"/proc/{process}")

up = Ray(Workers(device="cuda", count=3, gpus=2), verbose=False)
up.wait()
first, again = seat(3), seat(3)
assert all(lives(process) for process, _ in first)
up.end_actors()
left = [process for process, _ in first if lives(process)]
third, fewer = seat(3), seat(2)
print(json.dumps([first, again, left, third, fewer]))
up.stop()
"""


@pytest.mark.parametrize(
    ("count", "gpus", "share"),
    [(4, 1, 1 / 4), (2, 2, 1), (3, 2, 1 / 2), (5, 2, 1 / 3), (2, 3, 1), (2, 0, 0)],
)
def test_a_whole_number_of_shares_makes_up_a_gpu(count: int, gpus: int, share: float) -> None:
    workers = Workers(device="cuda" if gpus else "cpu", count=count, gpus=gpus)
    assert workers.resources == {"num_cpus": 1, "num_gpus": share}


def test_workers_spread_over_gpus_and_are_kept_only_for_as_many(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SEATED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    first, again, left, third, fewer = json.loads(ended.stdout)
    assert sorted(gpu for _, (gpu,) in first) == [0, 0, 1]
    assert again == first
    assert not left
    assert not {process for process, _ in first} & {process for process, _ in third}
    assert sorted(gpu for _, (gpu,) in fewer) == [0, 1]
    assert not {process for process, _ in third} & {process for process, _ in fewer}
