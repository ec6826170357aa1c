"""The README.md of an export: its lines read images as the run does, and it names no local path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from fl_vitlora.config import DataConfig, ModelConfig, load
from fl_vitlora.data.loose_images import find_images
from fl_vitlora.data.pixels import look_of
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.experiment.server_model import make_server
from fl_vitlora.experiment.trained_model import TrainedModel
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.finetuning.classifier import plain_heads
from fl_vitlora.library.model_cards import card, images_of, reading
from fl_vitlora.models import backbone
from fl_vitlora.models.own_model import store_model
from fl_vitlora.models.start import PLAIN, Start

LONG, SHORT = 40, 20  # pixels


def picture(mode: str) -> Image.Image:
    """Returns a picture of LONG × SHORT pixels whose parts all differ."""
    rows, columns = np.mgrid[:SHORT, :LONG]
    bands = [rows * 12, columns * 6, (rows + columns) * 4, 255 - columns * 6]
    pixels = np.stack(bands, axis=-1).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def transparent(path: Path) -> Path:
    picture("RGBA").save(path / "a.png")
    return path / "a.png"


def palette(path: Path) -> Path:
    picture("RGB").convert("P").save(path / "a.png", transparency=3)
    return path / "a.png"


def turned(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("RGB").save(path / "a.jpg", exif=exif)
    return path / "a.jpg"


def other(mode: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        picture("RGB").convert(mode).save(path / "a.tif")
        return path / "a.tif"

    return write


FILES: dict[str, Callable[[Path], Path]] = {
    "transparent": transparent,
    "a palette": palette,
    "turned": turned,
    "grey": other("L"),
    "four inks": other("CMYK"),
    "one bit": other("1"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize("background", [(255, 255, 255), (9, 80, 200), (17,)])
def test_the_lines_of_a_card_read_an_image_as_the_run_does(
    kind: str, fit: Any, background: tuple[int, ...], tmp_path: Path
) -> None:
    path, config = FILES[kind](tmp_path), DataConfig(fit=fit, background=background)
    expected = find_images([path]).read(config, 24, 16)[0].permute(1, 2, 0).numpy()
    scope: dict[str, Any] = {}
    lines = f"from PIL import Image, ImageOps\n{reading(look_of(config), 24, 16)}"
    exec(lines.replace("IMAGE", str(path)), scope)
    assert np.array_equal(np.asarray(scope["image"]), expected)


def trained(folder: Path, **settings: Any) -> TrainedModel:
    """Returns the model of a run before its first round, as `open_model` makes it."""
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    config = load(None, {"encryption.key_file": str(folder / "own.key"), **paths})
    names = tuple("0123456789")
    server = make_server(prepare_model(config, names, "cpu"), lambda origin: origin)
    return TrainedModel(
        folder=folder,
        config=config,
        class_names=names,
        tensors=GlobalModel(tensors=server.initial),
        key_id="abc",
        server=server,
    )


def weights_in(folder: Path) -> str:
    """Writes the bundled weights as a start, which is one of the files that a run may name."""
    public = backbone.build(ModelConfig(), tuple("0123456789"), seed=0)
    plain_heads(public.model)
    start = Start(
        run=str(folder / "runs" / "old"),
        digest="abc",
        model="vit_letters_16",
        reads=PLAIN,
        holds_key=False,
        reveals_part_of_key=False,
        class_names=tuple("0123456789"),
        tensors=dict(public.model.state_dict()),
    )
    return str(start.write(folder / ".given-models"))


@pytest.mark.parametrize("begun", [False, True])
def test_a_card_for_peft_says_where_the_weights_go_and_names_no_path(
    begun: bool, tmp_path: Path
) -> None:
    weights = weights_in(tmp_path)
    run = str(tmp_path / "runs" / "old") if begun else None
    text = card(trained(tmp_path, model__weights=weights, model__init_from=run), "peft", "plain", 0)
    assert str(tmp_path) not in text
    assert "init_from" not in text
    told, _, lines = text.partition("```python\n")
    assert "replace `WEIGHTS_OF_THE_RUN` by the path of the weights" in told
    assert lines.count("WEIGHTS_OF_THE_RUN") == 1
    scope: dict[str, Any] = {}
    exec(lines.partition("from peft")[0], scope)
    base = lines.partition("base = ")[2].partition("\nmodel = ")[0]
    built = eval(base.replace("WEIGHTS_OF_THE_RUN", weights), scope)
    assert isinstance(built, torch.nn.Module)


def test_a_card_for_peft_with_published_weights_has_nothing_to_fill_in(tmp_path: Path) -> None:
    text = card(trained(tmp_path), "peft", "plain", None)
    assert "replace" not in text
    assert "ModelConfig(name='vit_letters_16')," in text


def test_a_card_names_no_folder_of_a_model_of_ones_own(tmp_path: Path) -> None:
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    name = store_model(own, tmp_path)
    for form in ("peft", "timm", "onnx"):
        text = card(trained(tmp_path, model__name=name), form, "plain", None)
        assert str(tmp_path) not in text
        assert ("replace `MODEL_OF_THE_RUN` by" in text) == (form == "peft")


IDS = {"client 0": "aaa", "client 1": "bbb", "client 2": "bbb", "test": "ccc"}


@pytest.mark.parametrize(
    ("key_id", "key_ids", "client", "told"),
    [
        ("abc", {}, None, "the key under the secret abc (block"),
        ("abc", {}, 2, "the key of client 2 under the secret abc (block"),
        ("", IDS, 1, "the key of client 1 under the secret bbb (block"),
        ("", IDS, None, "the key under the secrets aaa, bbb, ccc of several owners (block"),
        ("", {"client 0": "aaa", "test": "aaa"}, None, "the key under the secret aaa (block"),
        (
            "",
            {f"client {n}": f"s{n}" for n in range(25)},
            None,
            "s18, s19 and 5 more of several owners (block",
        ),
        ("", {}, None, "the key under an unknown secret (block"),
    ],
)
def test_a_card_for_ciphertext_names_the_secret_of_each_owner(
    key_id: str, key_ids: dict[str, str], client: int | None, told: str, tmp_path: Path
) -> None:
    model = replace(trained(tmp_path), key_id=key_id, key_ids=key_ids)
    assert told in images_of(model, "ciphertext", client)
    assert told in card(model, "onnx", "ciphertext", client)
    assert "secret" not in card(model, "onnx", "plain", client)
