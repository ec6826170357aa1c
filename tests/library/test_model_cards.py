"""The README.md of an export: its lines read images as the run does, and it names no local path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_vitlora.config import DataConfig
from fl_vitlora.data.loose_images import find_images
from fl_vitlora.data.pixels import look_of
from fl_vitlora.library.model_cards import reading

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
