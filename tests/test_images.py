"""Bytes to pixels: every way in, every kind of image, and nothing but BadImage for what is none."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    SecondaryCaptureImageStorage,
)

from features.errors import BadImage, FirnError, UnknownName
from features.images import PREPROCESS, Geometry, ImageFacts, decode, describe, pixels, raster
from features.images import decoding as decoding_module
from features.images import dicom as dicom_module
from features.images import raster as plain
from features.images.image import Opened, without_copies

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (37, 53), dtype=np.uint16)
DEEP_COLOUR = RNG.integers(0, 65536, (37, 53, 3), dtype=np.uint16)
DEEP_ALPHA = RNG.integers(0, 65536, (37, 53, 4), dtype=np.uint16)
CROP = Geometry("crop", 224, 256, "bilinear")
Order = Literal["<", ">"]
SMALL = Geometry("squash", 16, 16, "bilinear")


# ---------------------------------------------------------------- writers of tiny images


def saved(image: Image.Image | NDArray[Any], kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(array: NDArray[Any], colour: int, extra: bytes = b"", size: tuple[int, int] | None = None) -> bytes:
    """Write a PNG of any colour type, 8 or 16 bits deep; `size` is what the header claims."""
    height, width = size or array.shape[:2]
    depth = array.dtype.itemsize * 8
    rows = b"".join(b"\0" + row.astype(array.dtype.newbyteorder(">")).tobytes() for row in array)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    array: NDArray[Any], photometric: int, *, form: int = 1, order: Literal["<", ">"] = "<", **tags: list[int]
) -> bytes:
    """Write an uncompressed TIFF in one strip; `tags` (t274=[6]) are added to the usual ones."""
    height, width = array.shape[:2]
    samples = array.shape[2] if array.ndim == 3 else 1
    raw = array.astype(array.dtype.newbyteorder(order)).tobytes()
    entries = {256: [width], 257: [height], 258: [array.dtype.itemsize * 8] * samples, 259: [1], 262: [photometric]}
    entries |= {273: [0], 277: [samples], 278: [height], 279: [len(raw)], 339: [form] * samples}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    start = 8 + 2 + 12 * len(entries) + 4
    entries[273] = [start + sum(4 * len(value) for value in entries.values() if len(value) > 1)]
    directory, long_values = b"", b""
    for tag, value in sorted(entries.items()):
        field = struct.pack(f"{order}{len(value)}I", *value)
        where = field if len(value) == 1 else struct.pack(order + "I", start + len(long_values))
        long_values += field if len(value) > 1 else b""
        directory += struct.pack(order + "HHI", tag, 4, len(value)) + where
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    return head + directory + b"\0\0\0\0" + long_values + raw


def dicom(array: NDArray[Any], photometric: str = "MONOCHROME2", **tags: Any) -> bytes:
    """Write an uncompressed DICOM file; `tags` override and add elements by keyword."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = UID("1.2.3")
    ds.Rows, ds.Columns = array.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (array.shape[2] if array.ndim == 3 else 1), photometric
    ds.PlanarConfiguration = 0
    ds.BitsAllocated = array.dtype.itemsize * 8
    if array.dtype == np.float32:
        ds.FloatPixelData = array.tobytes()
    else:
        ds.BitsStored, ds.HighBit = ds.BitsAllocated, ds.BitsAllocated - 1
        ds.PixelRepresentation = int(array.dtype.kind == "i")
        ds.PixelData = array.tobytes() + b"\0" * (array.nbytes % 2)
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def shipped(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return Path(path).read_bytes()


def planes(data: bytes) -> NDArray[Any]:
    """Decode to (C, H, W)."""
    image = decode(data, name="image")
    if image[0].mode == "RGB":
        return np.asarray(image[0]).transpose(2, 0, 1)
    return np.stack([np.asarray(plane) for plane in image])


def ranged(array: NDArray[Any]) -> NDArray[np.float64]:
    """What becomes of deep grey: minimum..maximum to 0..255."""
    low, high = float(array.min()), float(array.max())
    return (array.astype(np.float64) - low) / (high - low) * 255


def near(got: NDArray[Any], wanted: NDArray[Any]) -> None:
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)


# ---------------------------------------------------------------- geometry


def test_describe_is_one_line_of_what_changes_the_pixels() -> None:
    assert CROP.describe() == "crop: short side to 256 (bilinear, antialias), centre 224"
    assert Geometry("squash", 64, 7, "bicubic").describe() == Geometry("squash", 64, 9, "bicubic").describe()
    assert len({Geometry(how, 224, 256, "bilinear").describe() for how in PREPROCESS}) == 3


@pytest.mark.parametrize(
    ("how", "interpolation", "message"),
    [
        ("corp", "bilinear", "unknown preprocess 'corp'; known: crop, pad, squash .did you mean crop"),
        ("crop", "cubic", "unknown interpolation 'cubic'; known: bicubic, bilinear .did you mean bicubic"),
    ],
)
def test_unknown_names_are_refused(how: str, interpolation: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        Geometry(how, 224, 256, interpolation)


def test_a_side_below_one_is_refused() -> None:
    with pytest.raises(FirnError, match="size 0 and resize 256"):
        Geometry("crop", 0, 256, "bilinear")


def by_torchvision(image: Image.Image, size: int, resize: int, interpolation: str) -> NDArray[np.uint8]:
    from torchvision.transforms import InterpolationMode, functional

    mode = InterpolationMode(interpolation)
    square = functional.center_crop(functional.resize(image.convert("RGB"), [resize], interpolation=mode), [size])
    return np.asarray(square).transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (224, 232), (31, 32), (40, 30), (41, 30)])
@pytest.mark.parametrize(
    "shape", [(300, 401), (401, 300), (224, 224), (256, 300), (20, 97), (9, 9), (3, 130), (301, 299)]
)
def test_crop_is_torchvisions_bit_for_bit(shape: tuple[int, int], size: int, resize: int, interpolation: str) -> None:
    geometry = Geometry("crop", size, resize, interpolation)
    for array in (RNG.integers(0, 256, shape, dtype=np.uint8), RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)):
        got = pixels(npy(array), geometry, name="random")
        assert got.shape == (1 if array.ndim == 2 else 3, size, size)
        assert got.dtype == np.uint8
        assert got.flags.c_contiguous
        assert got.flags.writeable
        wanted = by_torchvision(Image.fromarray(array), size, resize, interpolation)
        assert np.array_equal(np.broadcast_to(got, wanted.shape), wanted)


def real_files(count: int) -> list[Path]:
    return [
        path
        for folder in ("pneumonia/test", "colon/test", "cervical/test", "radiographs_fullsize")
        for path in sorted((DATA / folder).rglob("*.jp*g"))[:count]
    ]


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data: real images")
def test_crop_is_what_the_weights_ask_for_on_real_images() -> None:
    import torch
    from torchvision.models import ResNet18_Weights
    from torchvision.transforms import functional

    transform = ResNet18_Weights.IMAGENET1K_V1.transforms()
    for path in real_files(4):
        with Image.open(path) as image:
            wanted = transform(image.convert("RGB"))
        got = torch.from_numpy(pixels(path.read_bytes(), CROP, name=path.name)).expand(3, -1, -1)
        assert torch.equal(
            functional.normalize(functional.convert_image_dtype(got), transform.mean, transform.std), wanted
        ), path


@pytest.mark.skipif(not DATA.exists(), reason="no ../shared/data: real images")
def test_real_rgb_copies_of_grey_become_one_plane() -> None:
    path = sorted((DATA / "pneumonia/test").rglob("*.jp*g"))[0]
    assert describe(path.read_bytes(), path.name).channels == 3
    (plane,) = decode(path.read_bytes(), name=path.name)
    assert plane.mode == "L"
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.stack([np.asarray(plane)] * 3, axis=2))


@pytest.mark.parametrize("how", ["squash", "pad"])
def test_an_image_of_the_final_size_is_not_resampled(how: str) -> None:
    array = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    got = pixels(npy(array), Geometry(how, 64, 99, "bicubic"), name="same")
    assert np.array_equal(got, array.transpose(2, 0, 1))


def test_squash_shows_the_whole_image() -> None:
    halves = np.zeros((40, 100), np.uint8)
    halves[:, 50:] = 200
    got = pixels(npy(halves), SMALL, name="halves")[0]
    assert got.shape == (16, 16)
    assert (got[:, :6] == 0).all()
    assert (got[:, 10:] == 200).all()


@pytest.mark.parametrize("tall", [False, True])
def test_pad_keeps_the_aspect_and_centres_on_black(tall: bool) -> None:
    white = np.full((25, 100), 255, np.uint8)
    got = pixels(npy(white.T if tall else white), Geometry("pad", 64, 64, "bilinear"), name="white")[0]
    wanted = np.zeros((64, 64), np.uint8)
    wanted[24:40] = 255
    assert np.array_equal(got.T if tall else got, wanted)


def test_a_hair_is_not_blown_up_to_a_gigantic_image() -> None:
    with pytest.raises(BadImage, match="hair: too long and thin: 20000 x 1 would grow"):
        pixels(npy(np.zeros((1, 20000), np.uint8)), CROP, name="hair")


def test_deep_images_stay_within_the_scale_where_bicubic_overshoots() -> None:
    got = pixels(npy(RNG.choice([0, 65535], (20, 20)).astype(np.uint16)), Geometry("pad", 64, 64, "bicubic"), name="x")
    assert got.dtype == np.float32
    assert got.min() == 0
    assert got.max() == 255


# ---------------------------------------------------------------- eight bits


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF"])
def test_lossless_formats_keep_grey(kind: str) -> None:
    assert np.array_equal(planes(saved(GREY, kind)), GREY[None])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_keep_colour(kind: str) -> None:
    assert np.array_equal(planes(saved(COLOUR, kind)), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff_keeps_colour(compression: str) -> None:
    assert np.array_equal(planes(saved(COLOUR, "TIFF", compression=compression)), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_pillows(mode: str) -> None:
    data = saved(Image.fromarray(COLOUR).convert(mode), "JPEG", quality=90)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.atleast_3d(np.asarray(image if mode == "L" else image.convert("RGB"))).transpose(2, 0, 1)
    assert np.array_equal(planes(data), wanted)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_becomes_black_and_white(kind: str) -> None:
    black_or_white = GREY > 127
    assert np.array_equal(planes(saved(black_or_white, kind)), 255 * black_or_white[None].astype(np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_is_dropped_and_other_alpha_lies_on_black(mode: str, kind: str) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    colour = np.asarray(image)[..., :-1].transpose(2, 0, 1)
    assert np.array_equal(planes(saved(image, kind)), colour)
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    image.putalpha(Image.fromarray(alpha))
    assert np.abs(planes(saved(image, kind)) - colour * (alpha / 255.0)).max() <= 0.5001


def test_alpha_that_nobody_has_filled_in_hides_nothing() -> None:
    image = Image.fromarray(COLOUR)
    image.putalpha(0)
    for data in (saved(image, "PNG"), saved(image, "TIFF")):
        assert np.array_equal(planes(data), COLOUR.transpose(2, 0, 1))
    near(planes(png(DEEP_ALPHA * np.array([1, 1, 1, 0], np.uint16), 6)), DEEP_ALPHA[..., :3].transpose(2, 0, 1) / 257)


def test_premultiplied_alpha_is_black_already() -> None:
    grey_alpha = np.stack([GREY // 2, np.full_like(GREY, 128)], axis=2)
    assert np.abs(planes(tiff(grey_alpha, 1, t338=[1])).astype(int) - GREY // 2).max() <= 1


def test_palette_with_and_without_transparency() -> None:
    image = Image.fromarray(COLOUR).quantize(16)
    wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(planes(saved(image, "PNG")), wanted)
    assert np.array_equal(planes(saved(image, "PNG", transparency=3)), wanted * (np.asarray(image) != 3))
    half = bytes([255] * 5 + [0] * 11)
    assert np.array_equal(planes(saved(image, "PNG", transparency=half)), wanted * (np.asarray(image) < 5))


def test_colour_with_equal_channels_is_one_plane_and_one_other_pixel_makes_three() -> None:
    copies = np.stack([GREY] * 3, axis=2)
    for data in (npy(copies), saved(copies, "PNG")):
        assert np.array_equal(planes(data), GREY[None])
    copies[0, 0] = (1, 1, 2)
    for data in (npy(copies), saved(copies, "PNG")):
        assert np.array_equal(planes(data), copies.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(GREY, kind, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(planes(data)[0], wanted)
    assert wanted.shape == (GREY.shape if orientation < 5 else GREY.T.shape)


def test_damaged_exif_does_no_harm() -> None:
    plain = saved(COLOUR, "JPEG")
    damaged = saved(COLOUR, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(planes(damaged), planes(plain))


def test_further_images_behind_a_jpeg_are_not_looked_at() -> None:
    first, second = Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)
    data = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.array_equal(planes(data), planes(saved(first, "JPEG")))


# ---------------------------------------------------------------- deeper than eight bits


def encoded(suffix: str, array: NDArray[Any]) -> bytes:
    return bytes(cv2.imencode(suffix, array[..., ::-1])[1])


@pytest.mark.parametrize(
    "data",
    [
        png(DEEP_COLOUR, 2),
        encoded(".png", DEEP_COLOUR),
        tiff(DEEP_COLOUR, 2),
        tiff(DEEP_COLOUR, 2, order=">"),
        encoded(".tiff", DEEP_COLOUR),
        npy(DEEP_COLOUR),
        dicom(DEEP_COLOUR, "RGB"),
    ],
    ids=["png", "png by opencv", "tiff", "big-endian tiff", "lzw tiff", "npy", "dicom"],
)
def test_16_bit_colour_keeps_its_low_bits(data: bytes) -> None:
    near(planes(data), DEEP_COLOUR.transpose(2, 0, 1) / 257.0)
    assert len(np.unique(planes(data))) > 5000


@pytest.mark.parametrize("data", [png(DEEP_ALPHA, 6), tiff(DEEP_ALPHA, 2, t338=[2])], ids=["png", "tiff"])
def test_16_bit_colour_with_alpha_lies_on_black(data: bytes) -> None:
    wanted = DEEP_ALPHA[..., :3] * (DEEP_ALPHA[..., 3:] / 65535) / 257
    np.testing.assert_allclose(planes(data), wanted.transpose(2, 0, 1), atol=0.01, rtol=0)


def test_a_fourth_channel_that_is_not_alpha_is_left_out() -> None:
    near(planes(tiff(DEEP_ALPHA, 2, t338=[0])), DEEP_ALPHA[..., :3].transpose(2, 0, 1) / 257)


def test_16_bit_grey_with_alpha() -> None:
    opaque = np.stack([DEEP, np.full_like(DEEP, 65535)], axis=2)
    near(planes(png(opaque, 4))[0], ranged(DEEP))


@pytest.mark.parametrize(
    "data",
    [
        png(DEEP, 0),
        png(np.stack([DEEP] * 3, axis=2), 2),
        tiff(DEEP, 1),
        tiff(DEEP, 1, order=">"),
        saved(DEEP, "TIFF", compression="tiff_lzw"),
        npy(DEEP),
        npy(DEEP[..., None].astype(">u2")),
        npy(np.asfortranarray(DEEP)),
        npy(DEEP.astype(np.float64)),
        tiff(DEEP.astype(np.float32), 1, form=3),
        saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        tiff(DEEP.astype(np.uint32) * 65537, 1),
        dicom(DEEP),
        dicom(DEEP.astype(np.float32)),
    ],
    ids=["png", "rgb", "tiff", "MM", "lzw", "npy", ">", "F", "f8", "f4", "i4", "u4", "dicom", "float dicom"],
)
def test_deep_grey_is_stretched_over_its_own_range(data: bytes) -> None:
    near(planes(data)[0], ranged(DEEP))


def test_12_bits_in_16_are_not_nearly_black_and_a_constant_is() -> None:
    twelve = DEEP >> 4
    near(planes(png(twelve, 0))[0], ranged(twelve))
    assert planes(png(twelve, 0)).max() == 255
    constant = np.full_like(DEEP, 777)
    for data in (png(constant, 0), tiff(constant, 0), dicom(constant, "MONOCHROME1")):
        assert (planes(data) == 0).all()


@pytest.mark.parametrize("array", [DEEP, DEEP.astype(np.float32)])
def test_deep_tiff_whose_white_is_zero_is_inverted(array: NDArray[Any]) -> None:
    form = 3 if array.dtype.kind == "f" else 1
    near(planes(tiff(array, 0, form=form))[0], 255 - ranged(array))


def test_deep_tiff_is_turned_upright() -> None:
    near(planes(tiff(DEEP, 1, t274=[6]))[0], ranged(np.rot90(DEEP, -1)))
    near(planes(tiff(DEEP_COLOUR, 2, t274=[6])), np.rot90(DEEP_COLOUR, -1).transpose(2, 0, 1) / 257.0)


def test_float_colour_is_stretched_over_the_range_of_all_channels() -> None:
    near(planes(npy(DEEP_COLOUR.astype(np.float32))), ranged(DEEP_COLOUR).transpose(2, 0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value: float) -> None:
    array = DEEP.astype(np.float32)
    array[3, 4] = value
    for data in (npy(array), tiff(array, 1, form=3), dicom(array), dicom(array, WindowCenter=9, WindowWidth=9)):
        with pytest.raises(BadImage, match="lung: expected finite values"):
            pixels(data, SMALL, name="lung")


def test_extreme_floats_do_not_overflow() -> None:
    for low, high in ((-3e38, 3e38), (0.0, 1e-45)):
        got = planes(npy(np.array([[low, high]], np.float32)))
        assert np.array_equal(got, [[[0, 255]]])


def test_separate_16_bit_planes_are_refused_rather_than_misread() -> None:
    with pytest.raises(BadImage, match="16-bit"):
        decode(tiff(DEEP_COLOUR, 2, t284=[2]), name="planar.tif")


# ---------------------------------------------------------------- DICOM


@pytest.mark.parametrize("name", ["RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_dicom_compressions_agree(name: str) -> None:
    assert np.array_equal(planes(shipped(f"MR_small_{name}.dcm")), planes(shipped("MR_small.dcm")))


def test_dicom_window_is_linear_between_its_ends() -> None:
    ds = pydicom.dcmread(io.BytesIO(shipped("MR_small.dcm")))
    low, high = ds.WindowCenter - 0.5 - (ds.WindowWidth - 1) / 2, ds.WindowCenter - 0.5 + (ds.WindowWidth - 1) / 2
    near(planes(shipped("MR_small.dcm"))[0], np.clip((ds.pixel_array - low) / (high - low), 0, 1) * 255)


RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        ("LINEAR", np.clip((RAMP - 1799.5) / 399 + 0.5, 0, 1)),
        ("LINEAR_EXACT", np.clip((RAMP - 1800.0) / 400 + 0.5, 0, 1)),
        ("SIGMOID", 1 / (1 + np.exp(-4 * (RAMP - 1800.0) / 400))),
    ],
)
def test_dicom_window_functions(function: str, wanted: NDArray[np.float64]) -> None:
    data = dicom(RAMP, WindowCenter=[1800, 5], WindowWidth=[400, 9], VOILUTFunction=function)
    near(planes(data)[0], wanted * 255)


def test_dicom_rescale_comes_before_the_window() -> None:
    data = dicom(RAMP, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40.5, WindowWidth=401)
    near(planes(data)[0], np.clip((2.0 * RAMP - 1024 - 40) / 400 + 0.5, 0, 1) * 255)


def test_dicom_negative_slope_without_window() -> None:
    near(planes(dicom(RAMP, RescaleSlope=-1, RescaleIntercept=0))[0], 255 - ranged(RAMP))


@pytest.mark.parametrize("width", [0, "", None])
def test_dicom_window_without_width_is_no_window(width: Any) -> None:
    near(planes(dicom(RAMP, WindowCenter=100, WindowWidth=width))[0], ranged(RAMP))


def lut(entries: list[int], bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), 0, bits]
    item.LUTData = entries
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def test_dicom_voi_lut_is_preferred_to_the_window() -> None:
    squares = [value * value // 4096 for value in range(4096)]
    data = dicom(RAMP, VOILUTSequence=[lut(squares, 12)], WindowCenter=1, WindowWidth=2)
    near(planes(data)[0], np.array(squares)[RAMP] * (255 / 4095))


def test_dicom_modality_lut() -> None:
    item = lut(list(range(4095, -1, -1)), 16)
    item.ModalityLUTType = "US"
    near(planes(dicom(RAMP, ModalityLUTSequence=[item]))[0], 255 - ranged(RAMP))


@pytest.mark.parametrize("array", [GREY, RAMP])
def test_monochrome1_is_inverted(array: NDArray[Any]) -> None:
    plain, inverted = planes(dicom(array)), planes(dicom(array, "MONOCHROME1"))
    assert plain.dtype == inverted.dtype == (np.uint8 if array is GREY else np.float32)
    np.testing.assert_allclose(plain, 255 - inverted, atol=1e-4)


def test_monochrome1_is_inverted_after_its_window() -> None:
    window: dict[str, Any] = {"WindowCenter": 1800, "WindowWidth": 400}
    near(planes(dicom(RAMP, "MONOCHROME1", **window)), 255 - planes(dicom(RAMP, **window)))


def test_dicom_padding_does_not_count_for_the_range() -> None:
    array = RAMP.astype(np.int16) + 100
    array[0] = -2000
    inside = np.clip((array - 164.0) / (4195 - 164) * 255, 0, 255)
    near(planes(dicom(array, PixelPaddingValue=-2000))[0], inside)
    assert (
        planes(dicom(array, PixelPaddingValue=-2000, PixelPaddingRangeLimit=9999))[0] == planes(dicom(array))[0]
    ).all()


def test_dicom_eight_bits_stay_as_they_are() -> None:
    assert np.array_equal(planes(dicom(GREY)), GREY[None])
    assert np.array_equal(planes(dicom(COLOUR, "RGB")), COLOUR.transpose(2, 0, 1))


def test_dicom_of_fewer_bits_is_stretched() -> None:
    near(planes(dicom(GREY >> 4, BitsStored=4, HighBit=3))[0], ranged(GREY >> 4))


def palette(bits: int) -> dict[str, Any]:
    entries = [(np.arange(256) * step % 256).astype(np.uint8) for step in (1, 3, 5)]
    wide = [entry.astype(np.uint16) * 257 if bits == 16 else entry for entry in entries]
    names = ("Red", "Green", "Blue")
    tags: dict[str, Any] = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, bits] for name in names}
    return tags | {
        f"{name}PaletteColorLookupTableData": entry.tobytes() for name, entry in zip(names, wide, strict=True)
    }


@pytest.mark.parametrize("bits", [8, 16])
def test_dicom_palette(bits: int) -> None:
    got = planes(dicom(GREY, "PALETTE COLOR", **palette(bits)))
    assert got.dtype == (np.uint8 if bits == 8 else np.float32)
    wanted = np.stack([(np.arange(256) * step % 256)[GREY] for step in (1, 3, 5)])
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def compressed(raw: bytes, syntax: UID, frame: bytes) -> bytes:
    """Write an uncompressed DICOM file anew, with this frame for its pixels."""
    ds = pydicom.dcmread(io.BytesIO(raw))
    ds.file_meta.TransferSyntaxUID, ds.PixelData = syntax, encapsulate([frame])
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("predictor", range(1, 8))
def test_dicom_jpeg_lossless_keeps_every_value(predictor: int, bits: int) -> None:
    for array, photometric in ((DEEP, "MONOCHROME2"), (DEEP_COLOUR, "RGB")):
        values = (array >> (16 - bits)).astype(np.uint8 if bits == 8 else np.uint16)
        frame = imagecodecs.jpeg8_encode(values, lossless=True, predictor=predictor, bitspersample=bits)
        raw = dicom(values, photometric, BitsStored=bits, HighBit=bits - 1)
        syntax = JPEGLosslessSV1 if predictor == 1 else JPEGLossless
        assert np.array_equal(planes(compressed(raw, syntax, frame)), planes(raw))


def test_dicom_jpeg_of_8_bits_where_16_are_allocated() -> None:
    frame = imagecodecs.jpeg8_encode(GREY, lossless=True, predictor=1)
    raw = dicom(GREY.astype(np.uint16), BitsStored=8, HighBit=7)
    assert np.array_equal(planes(compressed(raw, JPEGLosslessSV1, frame)), GREY[None])


def test_dicom_jpeg_of_12_bits_is_near_and_no_truncated_one_is_read() -> None:
    frame = imagecodecs.jpeg8_encode(RAMP, 100, bitspersample=12)
    raw = dicom(RAMP, BitsStored=12, HighBit=11)
    assert np.abs(planes(compressed(raw, JPEGExtended12Bit, frame)) - planes(raw)).max() < 0.2
    with pytest.raises(BadImage, match="truncated"):
        decode(compressed(raw, JPEGExtended12Bit, frame[:-200]), name="cut.dcm")


@pytest.mark.parametrize("name", ["dcmtk_+eb+cr", "dcmtk_+eb+cy+n1", "dcmtk_+eb+cy+np", "jpeg_gdcm", "gdcm_KY", "rle"])
def test_dicom_colour_spaces_agree(name: str) -> None:
    got = planes(shipped(f"SC_rgb_{name}.dcm")).astype(int)
    assert np.median(np.abs(got - planes(shipped("SC_ybr_full_422_uncompressed.dcm")))) <= 3


def test_dicom_deflated() -> None:
    assert planes(shipped("image_dfl.dcm")).shape == (1, 512, 512)


@pytest.mark.parametrize("name", ["MR_small_implicit.dcm", "MR_small.dcm"])
def test_dicom_without_preamble_and_meta_information(name: str) -> None:
    whole = shipped(name)
    bare = whole[144 + int.from_bytes(whole[140:144], "little") :]
    assert np.array_equal(planes(bare), planes(whole))


def test_every_dicom_file_that_pydicom_ships_is_read_or_refused() -> None:
    refused = []
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        try:
            got = pixels(path.read_bytes(), SMALL, name=path.name)
        except BadImage as error:
            refused.append(path.stem)
            assert str(error).startswith(f"{path.name}: ")
        else:
            assert got.shape[1:] == (16, 16)
    with_a_whole_image = {"CT_small", "JPEG2000", "JPGExtended", "examples_palette", "liver_1frame", "693_J2KI"}
    assert not with_a_whole_image & set(refused)
    assert {"MR_truncated", "rtplan", "examples_ybr_color", "badVR"} < set(refused)


# ---------------------------------------------------------------- facts


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (saved(GREY, "JPEG"), ImageFacts("JPEG", 53, 37, 1, 8, "grey")),
        (saved(COLOUR, "JPEG"), ImageFacts("JPEG", 53, 37, 3, 8, "rgb")),
        (saved(GREY > 9, "PNG"), ImageFacts("PNG", 53, 37, 1, 1, "grey")),
        (png(DEEP_ALPHA, 6), ImageFacts("PNG", 53, 37, 4, 16, "rgb+alpha")),
        (saved(COLOUR, "GIF"), ImageFacts("GIF", 53, 37, 1, 8, "palette")),
        (saved(GREY > 9, "BMP"), ImageFacts("BMP", 53, 37, 1, 1, "grey")),
        (tiff(DEEP_COLOUR, 2), ImageFacts("TIFF", 53, 37, 3, 16, "rgb")),
        (tiff(DEEP, 0), ImageFacts("TIFF", 53, 37, 1, 16, "white is zero")),
        (npy(DEEP_COLOUR), ImageFacts("NPY", 53, 37, 3, 16, "rgb")),
        (
            dicom(RAMP, "MONOCHROME1", BitsStored=12, HighBit=11),
            ImageFacts("DICOM", 64, 64, 1, 12, "MONOCHROME1"),
        ),
        (shipped("examples_ybr_color.dcm"), ImageFacts("DICOM", 320, 240, 3, 8, "YBR_FULL_422", 30)),
    ],
)
def test_facts(data: bytes, facts: ImageFacts) -> None:
    assert describe(data, "image") == facts


# ---------------------------------------------------------------- what is no image

JPEG = saved(COLOUR, "JPEG")
FRAMES = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]


def changed_size(name: str, marker: bytes, layout: str, at: int) -> bytes:
    data = bytearray(shipped(name))
    struct.pack_into(layout, data, data.index(marker) + at, 60000, 60000)
    return bytes(data)


def overrun() -> bytes:
    """Let the run-length code go on where its segment should end, which its decoder answers with a panic of Rust."""
    ds = pydicom.dcmread(io.BytesIO(shipped("MR_small_RLE.dcm")))
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    ds.PixelData = encapsulate([frame[:64] + b"\x81\x07" * 3000])
    out = io.BytesIO()
    ds.save_as(out)
    return out.getvalue()


BAD = {
    "empty": (b"", "got an empty file"),
    "text": (b"patient,age\n1,2\n", "got 16 bytes that begin with b'patient,'"),
    "one byte": (b"\xff", "expected JPEG, PNG, NPY, DICOM, TIFF, BMP, GIF, got 1 bytes"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated png": (saved(COLOUR, "PNG")[:-900], "truncated"),
    "truncated tiff": (saved(COLOUR, "TIFF")[:-900], "truncated"),
    "truncated lzw tiff": (encoded(".tiff", DEEP_COLOUR)[:-900], "cannot be decoded"),
    "truncated deep png": (png(DEEP_COLOUR, 2)[:-900], "truncated"),
    "truncated bmp": (saved(COLOUR, "BMP")[:-900], "truncated"),
    "truncated npy": (npy(GREY)[:-1], "buffer is smaller"),
    "truncated dicom": (shipped("MR_truncated.dcm"), "less than expected"),
    "damaged rle": (overrun(), "PanicException"),
    "png bomb": (png(GREY, 0, size=(50000, 50000)), "at most 250000000 pixels, got 50000 x 50000"),
    "deep png bomb": (png(DEEP_COLOUR, 2, size=(50000, 50000)), "at most 250000000 pixels"),
    "tiff bomb": (tiff(GREY, 1, t256=[60000], t257=[60000]), "at most 250000000 pixels"),
    "dicom bomb": (dicom(GREY, Rows=65000, Columns=65000), "at most 250000000 pixels"),
    "npy bomb": (npy(GREY).replace(b"(37, 53)", b"(99999, 99999)"), "buffer is smaller|Header"),
    "jpeg 2000 bomb": (changed_size("MR_small_jp2klossless.dcm", b"\xff\x4f\xff\x51", ">II", 8), "another size"),
    "jpeg-ls bomb": (changed_size("MR_small_jpeg_ls_lossless.dcm", b"\xff\xf7", ">HH", 5), "another size"),
    "jpeg-in-dicom bomb": (changed_size("SC_rgb_jpeg_dcmtk.dcm", b"\xff\xc0", ">HH", 5), "another size"),
    "endless jp2": (
        shipped("GDCMJ2K_TextGBR.dcm").replace(b"\0\0\0mrreq", b"\0\0\0\0rreq"),
        "expected a JP2 box of 8 bytes or more, got 0",
    ),
    "no rows": (npy(GREY[:0]), "got 53 x 0 pixels"),
    "no pixels in dicom": (dicom(GREY, Rows=0), "got 53 x 0 pixels"),
    "negative rows": (npy(GREY).replace(b"(37, 53)", b"(-3, 53)"), "expected an array|Header"),
    "pickle": (npy(np.array([{"a": 1}])), "integers or floats, got object"),
    "complex": (npy(GREY.astype(complex)), "integers or floats, got complex128"),
    "four channels": (npy(DEEP_ALPHA), r"got \(37, 53, 4\)"),
    "gif of two": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "got 2 frames"),
    "tiff of two": (saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "got 2 frames"),
    "png of two": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "got 2 frames"),
    "dicom of thirty": (shipped("examples_ybr_color.dcm"), "got 30 frames"),
    "dicom report": (shipped("reportsi.dcm"), "without an image"),
    "dicom head": (b"\0" * 128 + b"DICM", "without an image"),
    "photometric": (dicom(GREY, "MONOCHROME3"), "unknown photometric interpretation 'MONOCHROME3'.*MONOCHROME"),
    "window": (dicom(RAMP, WindowCenter=1, WindowWidth=2, VOILUTFunction="CUBIC"), "unknown VOI LUT function"),
    "16-bit cmyk": (tiff(DEEP_ALPHA, 5), "16-bit"),
    "png without header": (b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b"), "begins with its header"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_images_say_which_and_why_in_one_line(what: str) -> None:
    data, reason = BAD[what]
    with pytest.raises(BadImage, match=reason) as caught:
        pixels(data, SMALL, name="train/7.jpg")
    message = str(caught.value)
    assert message.startswith("train/7.jpg: ")
    assert message.endswith("; replace the file or take it out of the data set")
    assert "\n" not in message


def test_deflated_dicom_that_inflates_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_module, "_MAX_INFLATED", 1000)
    with pytest.raises(BadImage, match="after inflating"):
        decode(shipped("image_dfl.dcm"), name="deflated")


WHOLE = [
    JPEG,
    saved(GREY, "JPEG", progressive=True),
    saved(COLOUR, "PNG"),
    saved(Image.fromarray(COLOUR).quantize(16), "PNG"),
    png(DEEP_COLOUR, 2),
    png(DEEP, 0),
    saved(COLOUR, "TIFF"),
    saved(COLOUR, "TIFF", compression="tiff_lzw"),
    tiff(DEEP_COLOUR, 2),
    saved(COLOUR, "BMP"),
    saved(COLOUR, "GIF"),
    npy(DEEP),
    dicom(RAMP, WindowCenter=1800, WindowWidth=400),
    *map(
        shipped, ("SC_rgb_jpeg_dcmtk.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "JPEGLSNearLossless_16.dcm")
    ),
]


def read_or_refused(data: bytes) -> None:
    """Only BadImage may come out, of both questions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding_module, "MAX_PIXELS", 1_000_000)  # a changed header may ask for much work
        for ask in (lambda: pixels(data, SMALL, name="fuzz"), lambda: describe(data, "fuzz")):
            try:
                got = ask()
            except BadImage as error:
                assert str(error).startswith("fuzz: ")
            else:
                assert isinstance(got, ImageFacts) or (got.shape[1:] == (16, 16) and bool(np.isfinite(got).all()))


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"", *(data[:4] for data in WHOLE), b"\x89PNG\r\n\x1a\n", b"\x93NUMPY", b"\0" * 128 + b"DICM"]),
    st.binary(max_size=300),
)
def test_random_bytes_are_refused(start: bytes, rest: bytes) -> None:
    read_or_refused(start + rest)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.floats(0, 1) | st.just(1.0),
    st.lists(st.tuples(st.integers(0, 400) | st.integers(0, 20000), st.integers(1, 255)), max_size=6),
)
def test_damaged_files_are_read_or_refused(data: bytes, kept: float, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(data[: round(len(data) * kept)])
    for at, bits in flips:
        if at < len(damaged):
            damaged[at] ^= bits
    read_or_refused(bytes(damaged))


# ---------------------------------------------------------------- plain files


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


PLAIN = {
    "grey": saved(GREY, "JPEG"),
    "colour": saved(COLOUR, "JPEG"),
    "copies of grey": saved(np.stack([GREY] * 3, axis=2), "JPEG"),
    "4:4:4": saved(COLOUR, "JPEG", subsampling=0),
    "4:2:2": saved(COLOUR, "JPEG", subsampling=1),
    "progressive": saved(COLOUR, "JPEG", progressive=True),
    "restart markers": saved(COLOUR, "JPEG", restart_marker_blocks=2),
    "rgb": saved(COLOUR, "JPEG", keep_rgb=True),
    "comment": saved(GREY, "JPEG", comment=b"of a scanner"),
    "trailing bytes": saved(GREY, "JPEG") + b"\0\0 and more",
    "grey png": saved(GREY, "PNG"),
    "colour png": saved(COLOUR, "PNG"),
    "copies of grey in png": saved(np.stack([GREY] * 3, axis=2), "PNG"),
    "two pieces of png": encoded(".png", np.tile(GREY, (9, 9))),
}
CAREFUL = {
    "turned": saved(COLOUR, "JPEG", exif=exif(6)),
    "profile": saved(GREY, "JPEG", icc_profile=b"no profile"),
    "cmyk": saved(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"),
    "cut": saved(COLOUR, "JPEG")[:-40],
    "no end": saved(COLOUR, "JPEG")[:-2],
    "12 bits": imagecodecs.jpeg8_encode(RAMP, 90, bitspersample=12),
    "palette": saved(Image.fromarray(COLOUR).quantize(16), "PNG"),
    "alpha": saved(Image.fromarray(COLOUR).convert("RGBA"), "PNG"),
    "colour that is clear": saved(COLOUR, "PNG", transparency=(1, 2, 3)),
    "16 bits": png(DEEP, 0),
    "one bit": saved(GREY > 127, "PNG"),
    "header of another sum": saved(GREY, "PNG").replace(b"\x08\0\0\0\0", b"\x08\2\0\0\0", 1),
    "pixels of another sum": saved(GREY, "PNG")[:-20] + b"\1\2\3\4" + saved(GREY, "PNG")[-16:],
    "two images": saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]),
}


def ways(data: bytes) -> tuple[Opened | None, Opened | None, list[bytes]]:
    """Open a JPEG or PNG as plain and with care, and list what the first handed over to the second."""
    opened, handed = [], []
    kind, careful = (plain.png, raster.open_png) if data.startswith(b"\x89PNG") else (plain.jpeg, raster.open_jpeg)

    def noting(data: bytes) -> Opened:
        handed.append(data)
        return careful(data)

    for ask in (lambda: kind(data, noting), lambda: careful(data)):
        try:
            opened.append(ask())
        except Exception:  # of Pillow, of any kind
            opened.append(None)
    return opened[0], opened[1], handed


def same_both_ways(data: bytes, *, limit: int = 1_000_000) -> bool:
    """Compare facts and pixels of both ways; tell whether the careful one had no part in the first."""
    one, other, handed = ways(data)
    facts = [opened.facts for opened in (one, other) if opened]
    assert len(set(facts)) <= 1
    if facts and facts[0].width * facts[0].height > limit:
        return False
    found: list[NDArray[Any] | None] = []
    for opened in (one, other):
        try:
            found.append(opened.decode() if opened else None)
        except Exception:
            found.append(None)
    assert (found[0] is None) == (found[1] is None)
    assert found[0] is None or np.array_equal(found[0], found[1])
    return not handed


@pytest.mark.parametrize("what", PLAIN)
def test_plain_files_are_decoded_to_the_same_pixels_without_pillow(what: str) -> None:
    assert same_both_ways(PLAIN[what])


@pytest.mark.parametrize("what", CAREFUL)
def test_what_asks_for_care_is_decoded_by_pillow(what: str) -> None:
    assert not same_both_ways(CAREFUL[what])
    one, other, _ = ways(CAREFUL[what])
    assert (one is None) == (other is None)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([*PLAIN.values(), *CAREFUL.values()]),
    st.floats(0.5, 1) | st.just(1.0),
    st.lists(st.tuples(st.integers(0, 700) | st.integers(0, 20000), st.integers(1, 255)), max_size=4),
    st.binary(max_size=9),
)
def test_damaged_files_are_the_same_both_ways(
    data: bytes, kept: float, flips: list[tuple[int, int]], tail: bytes
) -> None:
    damaged = bytearray(data[: round(len(data) * kept)])
    for at, bits in flips:
        if at < len(damaged):
            damaged[at] ^= bits
    if damaged.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) and damaged[12:16] == data[12:16]:
        same_both_ways(bytes(damaged) + tail)


@pytest.mark.parametrize("shape", [(1, 1, 3), (700, 300, 3), (3, 70_000, 3)])
def test_one_other_value_anywhere_makes_three_channels(shape: tuple[int, int, int]) -> None:
    image = np.repeat(RNG.integers(0, 256, (*shape[:2], 1), dtype=np.uint8), 3, axis=2)
    assert np.array_equal(without_copies(image), image[..., 0])
    for at in ((0, 0, 1), (-1, -1, 2), (shape[0] // 2, shape[1] // 2, 0)):
        other = image.copy()
        other[at] ^= 1
        assert without_copies(other) is other


# ---------------------------------------------------------------- warnings, threads, imports


def test_warnings_of_decoders_do_not_leak_from_threads_of_a_process_where_warnings_are_errors() -> None:
    code = """
import pathlib, sys, warnings
from concurrent.futures import ThreadPoolExecutor
warnings.simplefilter("error")
from features.images import Geometry, pixels
data = pathlib.Path(sys.argv[1]).read_bytes()
with ThreadPoolExecutor(4) as pool:
    print(len(list(pool.map(lambda i: pixels(data, Geometry("pad", 16, 16, "bilinear"), name="padded"), range(40)))))
try:
    warnings.warn("of somebody else")
except UserWarning as error:
    print(error)
"""
    path = get_testdata_file("MR_small_padded.dcm", download=False)
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["40", "of somebody else"]
    assert not done.stderr


def test_threads_agree_with_one_another() -> None:
    files = WHOLE * 4
    ask: Callable[[bytes], NDArray[Any]] = lambda data: pixels(data, SMALL, name="thread")  # noqa: E731
    with ThreadPoolExecutor(4) as pool:
        for data, got in zip(files, pool.map(ask, files), strict=True):
            assert np.array_equal(got, ask(data))


def test_heavy_libraries_are_imported_only_when_needed() -> None:
    code = "import sys, features.images; print(*{'cv2', 'pydicom', 'torch', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
