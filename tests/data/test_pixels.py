"""Values are scaled as the format says, or refused with the setting that says it; never clipped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fl_vitlora.config import DataConfig, load
from fl_vitlora.data.classes import Encoded, Part
from fl_vitlora.data.dicom import read_dicom
from fl_vitlora.data.pixels import look_of, read_pixels
from fl_vitlora.errors import UserError

RAMP = np.array([[0, 257, 32896, 65535]])  # 0, 1, 128 and 255 times 257
DARK = np.array([[0, 1000, 2047, 4095]])  # 12 bits


def encode(image: Image.Image, form: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def decode(
    content: bytes | Path, size: tuple[int, int] = (1, 4), mode: str | None = None, **settings: Any
) -> list[Any]:
    """Reads an image as all sources do; returns the three colours, or the grey of equal ones."""
    stored = (
        Encoded("x", path=content) if isinstance(content, Path) else Encoded("x", content=content)
    )
    part = Part(labels=np.zeros(1, int), names=("a",), fetch=lambda _: [stored], mode=mode)
    config = load(None, {f"data.{name}": value for name, value in settings.items()}).data
    pixels = read_pixels(part, look_of(config), np.array([0]), *size)[0].tolist()
    return pixels[0] if pixels[0] == pixels[1] == pixels[2] else pixels


def grey(values: np.ndarray, kind: Any) -> Image.Image:
    return Image.fromarray(values.astype(kind))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled_by_their_depth(form: str):
    """All values above 255 once became white."""
    assert decode(encode(grey(RAMP, np.uint16), form)) == [[0, 1, 128, 255]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_12_bits_in_16_need_a_stated_range(form: str):
    content = encode(grey(DARK, np.uint16), form)
    with pytest.raises(
        UserError, match=r"image x: the image has 16 bits per channel, .* 4095 of 65535; .*0,4095"
    ):
        decode(content)
    assert decode(content, pixel_range=[0, 4095]) == [[0, 62, 127, 255]]
    assert decode(content, pixel_range=[0, 65535]) == [[0, 4, 8, 16]]


def test_a_black_image_of_16_bits_is_black():
    assert decode(encode(grey(0 * RAMP, np.uint16), "PNG")) == [[0] * 4]


@pytest.mark.parametrize(
    ("kind", "told"), [(np.int32, "integers of 32 bits from 0 to 65535"), (np.float32, "floating")]
)
def test_32_bits_need_a_stated_range(kind: Any, told: str):
    content = encode(grey(RAMP, kind), "TIFF")
    with pytest.raises(
        UserError, match=f"the pixels are {told}.*--set 'data.pixel_range=.LOW,HIGH.'"
    ):
        decode(content)
    assert decode(content, pixel_range=[0, 65535]) == [[0, 1, 128, 255]]
    assert decode(content, pixel_range=[257, 32896]) == [[0, 0, 255, 255]]
    assert decode(encode(grey(RAMP / 65535, np.float32), "TIFF"), pixel_range=[0, 1]) == [
        [0, 1, 128, 255]
    ]


def test_values_that_are_not_finite_are_refused():
    content = encode(grey(np.array([[0, 1, np.nan, 1]]), np.float32), "TIFF")
    with pytest.raises(UserError, match="expected finite pixel values, found NaN or infinity"):
        decode(content, pixel_range=[0, 1])


def test_a_tiff_of_16_bits_whose_zero_is_white_is_inverted():
    content = encode(grey(RAMP, np.uint16), "TIFF", tiffinfo={262: 0})
    with Image.open(io.BytesIO(content)) as image:
        if image.tag_v2[262] != 0:  # type: ignore[attr-defined]
            at = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00\x01")
            content = content[: at + 8] + b"\x00" + content[at + 9 :]
    assert decode(content) == [[255, 254, 127, 0]]


def png_of_16_bit_colours(rows: np.ndarray) -> bytes:
    """Writes what Pillow cannot: (W, 3) big-endian values of a single row."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", len(rows), 1, 16, 2, 0, 0, 0)
    data = zlib.compress(b"\0" + rows.astype(">u2").tobytes())
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def test_colours_of_16_bits_are_scaled_and_dark_ones_refused():
    rows = np.stack([RAMP[0], RAMP[0][::-1], RAMP[0]], axis=1)
    expected = [[0, 1, 128, 255], [255, 128, 1, 0], [0, 1, 128, 255]]
    assert [row[0] for row in decode(png_of_16_bit_colours(rows))] == expected
    dark = np.stack([DARK[0]] * 3, axis=1)
    with pytest.raises(UserError, match="colours of 16 bits per channel, but no value above"):
        decode(png_of_16_bit_colours(dark))
    with pytest.raises(
        UserError, match=r"data\.pixel_range cannot be used for a colour image of 16 bits"
    ):
        decode(png_of_16_bit_colours(dark), pixel_range=[0, 4095])


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (Image.fromarray(np.array([[0, 255, 255, 0]], np.uint8)).convert("1"), "PNG", [0, 255]),
        (Image.new("L", (4, 1), 77), "PNG", [77, 77]),
        (Image.new("P", (4, 1), 1), "PNG", None),
        (Image.new("CMYK", (4, 1), (0, 0, 0, 55)), "TIFF", [200, 200]),
    ],
    ids=["1", "L", "P", "CMYK"],
)
def test_8_bits_and_fewer_are_taken_as_they_are(image: Image.Image, form: str, expected: Any):
    if image.mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encode(image, form))[0][:2] == (expected or [9, 9])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_the_background(mode: str):
    """What colour lies under a transparent pixel is arbitrary, and was once shown."""
    image = Image.new("RGBA", (4, 1), (0, 0, 0, 0))
    image.putpixel((3, 0), (0, 0, 0, 255))
    settings: dict[str, Any] = {}
    if mode == "P":
        image = Image.new("P", (4, 1), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((3, 0), 1)
        settings = {"transparency": 0}
    content = encode(image.convert(mode), "PNG", **settings)
    assert decode(content) == [[255, 255, 255, 0]]
    assert decode(content, background=[7]) == [[7, 7, 7, 0]]
    colours = decode(content, background=[1, 2, 3])
    assert [row[0] for row in colours] == [[1, 1, 1, 0], [2, 2, 2, 0], [3, 3, 3, 0]]


def test_of_an_animation_the_first_picture_is_taken_and_pages_are_refused():
    frames = [Image.new("L", (4, 1), value) for value in (10, 200)]
    assert decode(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == [[10] * 4]
    pages = encode(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="image x: expected one image, found 2 pages"):
        decode(pages)


def test_a_mode_that_the_source_states_is_honoured():
    red = encode(Image.new("RGB", (4, 1), (255, 0, 0)), "PNG")
    assert decode(red, mode="L") == [[76] * 4]


def test_photos_stand_upright():
    """An orientation of 6 says that the picture was taken with the camera turned."""
    image = Image.new("L", (2, 1))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(image, "PNG", exif=exif), size=(2, 1)) == [[255], [0]]


@pytest.mark.parametrize(
    ("fit", "columns"),
    [
        ("squash", [0, 0, 0, 0, 255, 255, 255, 255]),
        ("crop", [0, 0, 0, 0, 255, 255, 255, 255]),
        ("pad", [0, 0, 0, 0, 255, 255, 255, 255]),
    ],
)
def test_aspect_ratio_is_a_setting(fit: str, columns: list[int]):
    """An image twice as wide as high: left half black, right half white, a grey frame on top."""
    image = Image.new("L", (32, 16), 255)
    image.paste(0, (0, 0, 16, 16))
    rows = decode(encode(image, "PNG"), size=(8, 8), fit=fit, background=[99])
    if fit == "pad":
        assert rows[0] == rows[1] == rows[6] == rows[7] == [99] * 8
    seen = np.array(rows[4])
    assert (np.abs(seen - columns)[[0, 1, 6, 7]] < 30).all()
    assert fit != "squash" or load(None).data.fit == fit  # the default


def test_a_cropped_image_loses_its_sides_and_a_squashed_one_does_not():
    image = Image.new("L", (32, 16), 0)
    image.paste(255, (0, 0, 6, 16))
    content = encode(image, "PNG")
    assert max(decode(content, size=(8, 8), fit="crop")[4]) == 0
    assert decode(content, size=(8, 8))[4][0] == 255


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"data.pixel_range": [1]}, "data.pixel_range: expected two finite numbers"),
        ({"data.pixel_range": [1, 1]}, "data.pixel_range: expected two finite numbers"),
        ({"data.pixel_range": [1, "inf"]}, "data.pixel_range: expected two finite numbers"),
        ({"data.background": [1, 2]}, "data.background: expected one number"),
        ({"data.background": [256]}, r"data.background: expected a number in the range \[0, 255\]"),
    ],
)
def test_settings_about_pixels_are_checked(settings: dict[str, Any], told: str):
    with pytest.raises(UserError, match=told):
        load(None, settings)


def write_dicom(path: Path, values: np.ndarray, bits: int, kind: str, **tags: Any) -> Path:
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    told = pydicom.dataset.Dataset()
    told.file_meta = meta
    told.SOPClassUID, told.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    told.Rows, told.Columns = values.shape[:2]
    told.SamplesPerPixel = 3 if values.ndim == 3 else 1
    told.BitsAllocated, told.BitsStored = 8 * values.dtype.itemsize, bits
    told.HighBit, told.PixelRepresentation = bits - 1, int(values.dtype.kind == "i")
    told.PhotometricInterpretation = kind
    told.PixelData = values.tobytes()
    if values.ndim == 3:
        told.PlanarConfiguration = 0
    for name, value in tags.items():
        setattr(told, name, value)
    pydicom.dcmwrite(path, told, enforce_file_format=True)
    return path


@pytest.mark.parametrize(
    ("values", "kind", "tags", "pixel_range", "expected"),
    [
        (np.array([[0, 2048, 4095]], np.uint16), "MONOCHROME2", {}, (), [0, 128, 255]),
        (np.array([[0, 2048, 4095]], np.uint16), "MONOCHROME1", {}, (), [255, 127, 0]),
        (np.array([[-2048, 0, 2047]], np.int16), "MONOCHROME2", {}, (), [0, 128, 255]),
        (np.array([[0, 7, 255]], np.uint8), "MONOCHROME2", {}, (), [0, 7, 255]),
        (
            np.array([[0, 1024, 2024]], np.uint16),
            "MONOCHROME2",
            {"RescaleSlope": 2, "RescaleIntercept": -1024},
            (-1024, 3024),
            [0, 129, 255],
        ),
        (
            np.array([[0, 1024, 4095]], np.uint16),
            "MONOCHROME2",
            {"RescaleSlope": 1, "RescaleIntercept": -1024},
            (),
            [0, 64, 255],
        ),
    ],
)
def test_dicom_is_read_as_it_says_of_itself(  # noqa: PLR0917
    tmp_path: Path,
    values: np.ndarray,
    kind: str,
    tags: dict[str, Any],
    pixel_range: tuple[float, ...],
    expected: list[int],
):
    bits = 8 if values.dtype == np.uint8 else 12
    path = write_dicom(tmp_path / "scan.dcm", values, bits, kind, **tags)
    assert read_dicom(path, pixel_range).tolist() == [expected]
    assert decode(path, size=(1, 3), pixel_range=list(pixel_range)) == [expected]


def test_dicom_of_several_frames_is_refused_and_colours_are_read(tmp_path: Path):
    values = np.zeros((2, 2), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", values, 8, "MONOCHROME2", NumberOfFrames=2)
    with pytest.raises(UserError, match="image x: expected one image, found 2 frames"):
        decode(path)
    colours = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    path = write_dicom(tmp_path / "b.dcm", colours, 8, "RGB")
    assert read_dicom(path, ()).tolist() == colours.tolist()


def test_dicom_files_are_images_or_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fl_vitlora.data import local_folder
    from fl_vitlora.data.sources import load_source

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("L", (2, 2)).save(tmp_path / name / f"{number}.png")
            values = np.full((2, 2), 4095, np.uint16)
            write_dicom(tmp_path / name / f"IM{number}", values, 12, "MONOCHROME2")
    source = load_source(DataConfig(name=str(tmp_path), test_fraction=0.5))
    pixels = source.train.read(np.arange(6), 2, 2)
    assert (
        sorted(
            pixels[:, 0, 0, 0].tolist() + source.test.read(np.arange(6), 2, 2)[:, 0, 0, 0].tolist()
        )
        == [0] * 6 + [255] * 6
    )
    monkeypatch.setattr(local_folder, "can_read_dicom", lambda: False)
    source = load_source(DataConfig(name=str(tmp_path), test_fraction=0.5))
    assert len(source.train) == 3
    assert "6 DICOM files (to read them: pip install 'fl_vitlora[dicom]')" in source.told
