"""Owners encrypt their own folders; SuperNodes train on the shards as they are, without the images.

Each owner runs the program in a process of its own, with a ring of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fl_vitlora.flower.simulation.free_ports import free_port
from tests.experiment.test_deployment import BIN, CLIENTS, ROOT, listens, process, shown
from tests.made_up_owners import make_folder, resized
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

EXPERIMENT = """
clients: 2
rounds: 2
seed: 3
engine: {device: cpu}
encryption: {scope: client, key_file: nowhere.key}
"""


def encrypt(folder: Path, owner: int) -> None:
    """Lets an owner encrypt its images in a process of its own."""
    code = "import sys; from fl_vitlora.command_line.tools import main; main(sys.argv[1:])"
    words: list[object] = [
        "encrypt",
        folder / "owners" / f"own {owner}",
        folder / "nodes" / str(owner),
    ]
    words += ["--config", folder / "experiment.yaml", "--client", owner]
    words += ["--key", folder / "owners" / f"{owner}.key"]
    words += ["--storage-key", folder / "keys" / f"client-{owner:05d}.key"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], cwd=ROOT, check=True)


def simulate(folder: Path) -> None:
    """Leaves in `simulated` a run on the shards of all owners."""
    command = [sys.executable, "simulate.py", "--config", str(folder / "experiment.yaml")]
    command += ["--shards", str(folder / "nodes"), "--out", str(folder / "simulated")]
    command += ["--set", f"data.storage_keys={folder / 'keys'}", "--cohort", "1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def deploy(folder: Path) -> None:
    """Leaves in `deployed` a run of a SuperLink and of a SuperNode for each owner."""
    api, home = f"127.0.0.1:{free_port()}", folder / "flower"
    home.mkdir()
    (folder / "server").mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{api}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    config = f'config="{folder}/experiment.yaml"'
    with contextlib.ExitStack() as stack:
        link = [sys.executable, "-P", str(ROOT / "tests" / "counting_superlink.py")]
        link += [str(folder / "counts.csv"), "--insecure", "--port", api.rpartition(":")[2]]
        link.append("--disable-runtime-dependency-installation")
        stack.enter_context(process(folder / "link.log", *link, environment=environment))
        for client in range(CLIENTS):
            node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", api]
            given = f'partition-id={client} shards="{folder}/nodes/{client}" {config} '
            given += f'storage-key="{folder}/keys/client-{client:05d}.key"'
            node += ["--node-config", given, "--port", str(free_port())]
            log = folder / f"node-{client}.log"
            stack.enter_context(process(log, *node, environment=environment))
        told = f'{config} shards="{folder}/server" out="{folder}/deployed" '
        told += f'classes="{folder}/simulated/classes.json"'
        command = [str(BIN / "flwr"), "run", str(ROOT / "deploy"), "here", "--run-config", told]
        with shown(folder):
            wait_until(lambda: listens(api))
        submitted = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert submitted.returncode == 0, submitted.stdout + submitted.stderr
        with shown(folder):
            wait_until((folder / "deployed" / "result.json").exists)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    for owner in range(CLIENTS):
        make_folder(folder / "owners" / f"own {owner}", seed=owner, each=10)
        encrypt(folder, owner)
    (folder / "owners").rename(folder.parent / "the owners' own machines")
    simulate(folder)
    deploy(folder)
    return folder


def test_nodes_train_as_the_simulation_on_the_same_shards(runs: Path) -> None:
    simulated = load_file(runs / "simulated" / "model.safetensors")
    deployed = load_file(runs / "deployed" / "model.safetensors")
    assert simulated.keys() == deployed.keys()
    assert all(torch.equal(simulated[name], deployed[name]) for name in simulated)


def test_no_plain_image_lies_anywhere(runs: Path) -> None:
    """Not its file, not its pixels in any order of the axes, and no picture but the charts."""
    originals = list((runs.parent / "the owners' own machines").rglob("*.png"))
    assert len(originals) == CLIENTS * 3 * 15
    pixels = [resized(path) for path in originals]
    wanted = [pixel.tobytes()[:48] for pixel in pixels]
    wanted += [pixel.transpose(2, 0, 1).tobytes()[:48] for pixel in pixels]
    wanted += [path.read_bytes()[60:108] for path in originals]
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) >= 4 * CLIENTS
    for path in files:
        content = path.read_bytes()
        assert not any(part in content for part in wanted), path
        with contextlib.suppress(OSError), Image.open(path):
            assert path.parent.name == "plots", path
