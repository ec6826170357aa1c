"""What every shipped method must do beside the rules of its contract (`test_shelf`).

A run over ciphertext ends with the tensors of the run over plain images, with one key and with a
key for each client. Every tensor passes through every codec. Secure sums change no decision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fl_vitlora.communication.compression import code, decode
from fl_vitlora.communication.lanes import read_lanes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.state import l2_norm, subtract
from fl_vitlora.testing.method_subject import Subject
from tests.communication.codecs.vectors import SPECS
from tests.in_process import federate, settings
from tests.whole_runs import DESCENT, execute

SMALL: dict[str, Any] = {
    "clients": 2,
    "data__limit": 24,
    "training__epochs": 1,
    "training__optimizer": "sgd",
    "training__learning_rate": 0.02,
}
PLAIN: dict[str, Any] = {"encryption__steps": []}
KEYS: dict[str, dict[str, Any]] = {
    "a key each": {
        "encryption__scope": "client",
        "encryption__adapt": True,
        "finetuning__patch_embedding": "aligned",
    },
    "one key": {"encryption__adapt": True},
}


def with_patch_embedding(part: str) -> dict[str, Any]:
    """Returns a method that trains the patch embedding, if it can, so that keys matter most."""
    if part == "losa":  # its backbone is frozen, and only channels do not depend on the key
        return {"finetuning__method": part, "finetuning__parameters__mixers": "channels"}
    trains = part in ("full", "patch_embed")
    return {"finetuning__method": part if trains else f"{part}+patch_embed"}


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("part", PARTS)
def test_a_run_over_ciphertext_is_the_run_over_plain_images(part: str, keys: str):
    method = with_patch_embedding(part)
    plain = federate(settings(0, **SMALL, **PLAIN, **method), torch.float64)
    keyed = federate(settings(0, **SMALL, **KEYS[keys], **method), torch.float64)
    way = l2_norm(subtract(plain.model, plain.initial))
    assert way > 1e-3
    read_under_key = () if keys == "a key each" else ("patch_embed", "pos_embed")
    same = {n: t for n, t in plain.model.items() if not n.startswith(read_under_key)}
    distance = l2_norm(subtract({n: keyed.model[n] for n in same}, same))
    assert distance < 1e-10 * way
    assert keyed.accuracy == plain.accuracy
    assert keyed.loss == pytest.approx(plain.loss, rel=1e-9)


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_passes_through_every_codec(part: str):
    """What the server decides arrives exactly, whatever the codec; the rest as far as it can."""
    method = shelf.method_of(FineTuningConfig(method=part))
    sent = methods.export_state(Subject(method=method).moved().model)
    layout = Layout.of(sent)
    for spec in SPECS:
        lanes = read_lanes({}, spec)
        part_of_message = code(sent, layout, lanes, np.random.default_rng(0))
        received = decode(part_of_message, layout)
        assert list(received) == list(sent), spec
        for name, tensor in sent.items():
            assert received[name].shape == tensor.shape
            assert torch.isfinite(received[name]).all()
            if name.endswith(method.control):
                assert torch.equal(received[name], tensor), (spec, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"method": "aflora", "targets": ["fc1", "q"]}, {"method": "sift"}],
    ids=["aflora", "sift"],
)
def test_the_server_decides_the_same_from_secure_sums(
    options: dict[str, Any], tmp_path: Path, engine: Engine
):
    """Secure sums are quantised, so an entry at the edge of the choice may be another one."""
    given = {f"finetuning__{name}": value for name, value in options.items()}
    key_file = str(tmp_path / "owner.key")
    given |= {**DESCENT, "rounds": 4, "fraction": 1.0, "encryption__key_file": key_file}
    one, other = (
        execute(tmp_path / str(secure), engine, privacy__secure_aggregation=secure, **given)
        for secure in (False, True)
    )
    assert [line.get("frozen") for line in one.lines] == [
        line.get("frozen") for line in other.lines
    ]
    models = [load_file(run.folder / "model.safetensors") for run in (one, other)]
    for name, places in models[0].items():
        if name.endswith(".places"):
            shared = set(places.tolist()) & set(models[1][name].tolist())
            assert len(shared) > 0.98 * len(places)
