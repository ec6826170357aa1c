"""Draws labelled images of letters, 8x8 pixels each; no image shows a digit.

The models of this package were trained on these images only. A letter is drawn large in a font that
comes with matplotlib. The letter is bent by a random affine map and a random smooth displacement,
made thicker or thinner, cropped to its ink (the dark pixels) and scaled to a height of 32 pixels.
To get a small image, the ink pixels in each of 8x8 squares are counted, which gives 17 grey levels.
The UCI handwritten digits were prepared in the same way. Digits, and every other character with a
numeric value, are refused.

Letters in shapes: M masks, B images in a batch, C characters, P images of one character, S side of
a mask in pixels.

Sources: preparation of the digits, Alpaydin and Kaynak 1998 (doi 10.24432/C50P49); smooth random
displacements, Simard et al. 2003 (ICDAR, "Best practices for convolutional neural networks").
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

LATIN: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijkmnqrtuy"
GREEK: Final = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπρστφχψω"
CYRILLIC: Final = "БДЖЗИЛЦЧШЭЮЯбвджлцчэюя"
ARMENIAN: Final = "ԲԳԴԵԶԷԹԺԼԽԿՀՁՂՃՄՇՉՊՋՎՐՔաբգդեզէըթժլխծկհձղճմյնշչպջռվտրցփքֆ"
GEORGIAN: Final = "აბგდევზთიკლმნოპჟრსტუფქღყშჩცძწჭხჯჰ"
SYMBOLS: Final = "&?@#$%+=<>§¶£¥€∂∞∫∑√∇∃∀∈⊂⊕⊗∪∩"
CHARACTERS: Final = LATIN + GREEK + CYRILLIC + ARMENIAN + GEORGIAN + SYMBOLS
FONTS: Final = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
MASK_SIDE: Final = 48
INK_SIDE: Final = 32
IMAGE_SIDE: Final = 8


def check_no_digits(characters: str) -> None:
    """Raises an error for characters with a numeric value, so that no digit is ever drawn.

    Args:
        characters: The characters to be drawn.

    Raises:
        ValueError: If a character is numeric, or if there are no characters.

    Example:
        >>> check_no_digits("abc")
    """
    numeric = [c for c in characters if c.isnumeric()]
    if numeric or not characters:
        raise ValueError(
            f"expected at least one character, and only letters and symbols; got numeric {numeric}"
        )


def font_path(name: str) -> Path:
    """Returns the path of a font in the folder of the library matplotlib."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"


def _draw(character: str, font: ImageFont.FreeTypeFont) -> Tensor:
    """Draws one character, centred, and returns its ink (S, S) in [0, 1]."""
    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (MASK_SIDE, MASK_SIDE))
    corner = ((MASK_SIDE - left - right) / 2, (MASK_SIDE - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
    return torch.from_numpy(np.asarray(canvas, dtype=np.float32) / 255.0)


def draw_masks(characters: str = CHARACTERS) -> list[Tensor]:
    """Draws every character in every font that has it.

    Args:
        characters: Distinct characters without numeric value. The class of a character is its
            position in this text.

    Returns:
        For each character, a tensor (M, S, S) of ink in [0, 1], where M is the number of fonts that
        have this character.

    Raises:
        ValueError: If a character is numeric, or if no font has the character.
    """
    check_no_digits(characters)
    charmaps = [FT2Font(str(font_path(n))).get_charmap() for n in FONTS]
    fonts = [ImageFont.truetype(str(font_path(n)), size=34) for n in FONTS]
    masks: list[Tensor] = []
    for character in characters:
        having = [f for f, known in zip(fonts, charmaps, strict=True) if ord(character) in known]
        if not having:
            raise ValueError(f"no font of {FONTS} can draw {character!r}")
        masks.append(torch.stack([_draw(character, f) for f in having]))
    return masks


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Draws uniform numbers in [low, high)."""
    return torch.rand(shape, generator=generator) * (high - low) + low


def random_affine(count: int, generator: torch.Generator) -> Tensor:
    """Draws random affine maps: rotation ±17 degrees, shear ±0.4, narrowing by 0.75 to 1.9 times.

    A narrowing below 1 makes the letter wider.

    Args:
        count: The number B of maps.
        generator: The generator of all random numbers.

    Returns:
        Maps (B, 2, 3) in the convention of ``torch.nn.functional.affine_grid``.
    """
    angle = _uniform((count,), -0.3, 0.3, generator)
    shear = _uniform((count,), -0.4, 0.4, generator)
    aspect = _uniform((count,), math.log(0.75), math.log(1.9), generator).exp()
    cos, sin = angle.cos(), angle.sin()
    top = torch.stack([cos * aspect, cos * shear - sin, torch.zeros(count)], dim=1)
    bottom = torch.stack([sin * aspect, sin * shear + cos, torch.zeros(count)], dim=1)
    return 1.15 * torch.stack([top, bottom], dim=1)


def random_displacement(count: int, generator: torch.Generator) -> Tensor:
    """Draws smooth displacement fields (B, S, S, 2); one unit is half the width of an image."""
    size = _uniform((count, 1, 1, 1), 0.02, 0.12, generator)
    coarse = torch.randn((count, 2, 4, 4), generator=generator) * size
    fine = F.interpolate(coarse, size=MASK_SIDE, mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1)


def _spread(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Makes strokes thicker or thinner with a random threshold; returns (B, 1, S, S) in {0, 1}."""
    blurred = F.avg_pool2d(F.avg_pool2d(masks, 5, 1, 2), 3, 1, 1)
    level = _uniform((len(masks), 1, 1, 1), 0.22, 0.6, generator)
    level = torch.minimum(level, 0.7 * blurred.amax(dim=(2, 3), keepdim=True))
    return (blurred > level).float()


def _extent(used: Tensor, axis: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the smallest and the largest entry of `axis` where `used`, (B, S), is True."""
    low = torch.where(used, axis, 1.0).amin(dim=1)
    return low, torch.where(used, axis, -1.0).amax(dim=1)


def _ink_window(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Returns maps (B, 2, 3) that scale the ink to full height and move it to the centre."""
    axis = torch.linspace(-1, 1, MASK_SIDE)
    columns, rows = ink.amax(dim=(1, 2)) > 0, ink.amax(dim=(1, 3)) > 0
    left, right = _extent(columns, axis)
    top, bottom = _extent(rows, axis)
    half_height = ((bottom - top) / 2).clamp(min=0.05) + 0.02
    half_width = torch.maximum((right - left) / 2 + 0.02, half_height)
    zero = torch.zeros_like(left)
    row_x = torch.stack([half_width, zero, (left + right) / 2], dim=1)
    row_y = torch.stack([zero, half_height, (top + bottom) / 2], dim=1)
    return torch.stack([row_x, row_y], dim=1)


def render(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Turns large drawings of letters (masks) into small distorted images.

    Args:
        masks: Masks (B, S, S) of ink in [0, 1].
        generator: The generator of all random numbers. With the same state, the generator gives the
            same images.

    Returns:
        Images (B, 8, 8), uint8, with the grey levels 0 to 16 of the UCI digits.
    """
    count = len(masks)
    shape = [count, 1, MASK_SIDE, MASK_SIDE]
    grid = F.affine_grid(random_affine(count, generator), shape, align_corners=False)
    grid = grid + random_displacement(count, generator)
    ink = _spread(F.grid_sample(masks.unsqueeze(1), grid, align_corners=False), generator)
    window = F.affine_grid(
        _ink_window(ink, generator), [count, 1, INK_SIDE, INK_SIDE], align_corners=False
    )
    cropped = (F.grid_sample(ink, window, align_corners=False) > 0.5).float()
    levels = F.avg_pool2d(cropped, INK_SIDE // IMAGE_SIDE) * 16
    return levels.round().to(torch.uint8).squeeze(1)


def render_set(characters: str, per_character: int, seed: int) -> Tensor:
    """Renders the same number of images of every character.

    Args:
        characters: Distinct characters without numeric value, one for each class.
        per_character: The number P of images of every character.
        seed: The seed of all random numbers.

    Returns:
        Images (C, P, 8, 8), uint8, with grey levels 0 to 16. The first index of the result is the
        class.

    Example:
        >>> render_set("ab", per_character=3, seed=0).shape
        torch.Size([2, 3, 8, 8])
    """
    generator = torch.Generator().manual_seed(seed)
    images = []
    for masks in draw_masks(characters):
        chosen = torch.randint(len(masks), (per_character,), generator=generator)
        images.append(render(masks[chosen], generator))
    return torch.stack(images)
