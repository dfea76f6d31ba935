"""DICOM: one frame, through its modality and VOI transformations, to values on the scale 0..255."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features.errors import BadImage, unknown
from features.images.image import (
    MAX_BYTES,
    DecodedImage,
    ImageFacts,
    Opened,
    finite,
    from_array,
    full_scale,
    stretched,
)

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

_JPEG = b"\xff\xd8"
_JPEG_FRAME_HEADERS = {*range(0xFFC0, 0xFFD0), 0xFFF7} - {0xFFC4, 0xFFC8, 0xFFCC}
_J2K = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP  "


def coded_size(frame: bytes) -> tuple[int, int] | None:
    """Return (width, height) of a JPEG, JPEG-LS or JPEG 2000 codestream, None for all else (RLE has no size)."""
    if frame.startswith(_JP2):
        frame = _unboxed(frame)
    if frame.startswith(_J2K):
        return _j2k_size(frame)
    return _jpeg_size(frame) if frame.startswith(_JPEG) else None


def _unboxed(frame: bytes) -> bytes:
    """Return the codestream of a JP2 file (ITU-T T.800 I.4); a box without length would hold pydicom for ever."""
    at = 12
    while at + 8 <= len(frame):
        length, kind = struct.unpack_from(">I4s", frame, at)
        if kind == b"jp2c":
            return frame[at + 8 :]
        if length < 8:
            raise BadImage(f"expected a JP2 box of 8 bytes or more, got {length}")
        at += length
    return b""


def _j2k_size(frame: bytes) -> tuple[int, int]:
    """Read the SIZ segment (ITU-T T.800 A.5.1)."""
    right, bottom, left, top = struct.unpack_from(">4I", frame, len(_J2K) + 4)
    return right - left, bottom - top


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Read the frame header (ITU-T T.81 B.2.2, for JPEG-LS T.87 C.2.2)."""
    at = len(_JPEG)
    while at + 9 <= len(frame):
        marker, length, _, height, width = struct.unpack_from(">HHBHH", frame, at)
        if marker in _JPEG_FRAME_HEADERS:
            return width, height
        at += 2 + length
    return None


_PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_META_LENGTH = slice(140, 144)  # value of (0002,0000), which comes first after the preamble and "DICM"
_MAX_INFLATED = MAX_BYTES // 4  # the inflated bytes are there twice, and then the image
_ROWS = 256  # through a window at once: its float64 would take four times the image


def open_dicom(data: bytes) -> Opened:
    """Open a DICOM file, with or without preamble, compressed or not; more than one frame shows in the facts."""
    import pydicom

    if _DEFLATED in data[:1024]:
        _check_inflated(data)
    ds = pydicom.dcmread(io.BytesIO(data), force=True)
    if not any(keyword in ds for keyword in _PIXEL_DATA):
        raise BadImage("a DICOM file without an image")
    facts = ImageFacts(
        "DICOM",
        int(ds.Columns),
        int(ds.Rows),
        int(ds.SamplesPerPixel),
        int(ds.get("BitsStored") or ds.BitsAllocated),
        str(ds.PhotometricInterpretation),
        int(ds.get("NumberOfFrames") or 1),
    )
    return Opened(facts, partial(_decode, ds, facts), partial(_stored, ds, facts))


def _check_inflated(data: bytes) -> None:
    """Refuse a deflated file that would inflate without end, before pydicom inflates it in one go."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = data[_META_LENGTH.stop + int.from_bytes(data[_META_LENGTH], "little") :]
    while rest and not inflater.eof and size <= _MAX_INFLATED:  # what follows the end would be given back for ever
        size += len(inflater.decompress(rest, 1 << 20))
        rest = inflater.unconsumed_tail
    if size > _MAX_INFLATED:
        raise BadImage(f"expected at most {_MAX_INFLATED:,} bytes after inflating, got more")


def _decode(ds: Dataset, facts: ImageFacts) -> DecodedImage:
    """Decode the one frame and show it as its photometric interpretation asks."""
    if facts.photometric not in _SHOWN:
        raise BadImage(str(unknown("photometric interpretation", facts.photometric, _SHOWN)))
    return _SHOWN[facts.photometric](ds, _stored(ds, facts), facts.bits)


def _stored(ds: Dataset, facts: ImageFacts) -> NDArray[Any]:
    """Return the one frame's values before any transformation."""
    from pydicom.pixels.utils import pixel_array

    import features.images.jpeg_plugin  # noqa: F401  (registers itself)

    if "TransferSyntaxUID" not in ds.file_meta:
        ds.file_meta.TransferSyntaxUID = _transfer_syntax(ds)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_coded(ds, facts)
    return pixel_array(ds)


def _check_coded(ds: Dataset, facts: ImageFacts) -> None:
    """Refuse a compressed frame that is larger than the file says, before its decoder takes memory for it."""
    from pydicom.encaps import get_frame

    size = coded_size(get_frame(ds.PixelData, 0, number_of_frames=1))
    if size not in (None, (facts.width, facts.height)):
        raise BadImage(f"expected {facts.width} x {facts.height} pixels, got a frame of another size {size}")


def _transfer_syntax(ds: Dataset) -> UID:
    """Return the uncompressed transfer syntax that a file without meta information was read in."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    implicit, little = ds.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _monochrome(ds: Dataset, stored: NDArray[Any], bits: int, *, inverted: bool = False) -> DecodedImage:
    """Show grey values: modality LUT or rescale, then the first VOI LUT or window, else their own minimum..maximum.

    Eight-bit values without any of these stay as they are. Padding does not count for minimum and maximum.
    """
    from pydicom.pixels.processing import apply_modality_lut

    values = finite(apply_modality_lut(stored, ds))  # before a window makes white of infinity
    shown = _voi_lut(ds, values)
    if shown is None:
        shown = _windowed(ds, values)
    if shown is None and values.dtype == np.uint8 and bits == 8:
        return from_array(255 - values if inverted else values)
    if shown is None:
        signed = -values.astype(np.float64) if inverted else values
        return finite(stretched(signed, among=_unpadded(ds, stored, signed)))
    return 255 - shown if inverted else shown


def _voi_lut(ds: Dataset, values: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return values through the first VOI LUT on the scale 0..255 (PS3.3 C.11.2.1.1), None where there is none."""
    from pydicom.pixels.processing import apply_voi

    if not ds.get("VOILUTSequence"):
        return None
    bits = int(ds.VOILUTSequence[0].LUTDescriptor[2])
    return full_scale(apply_voi(np.rint(values).astype(np.int64), ds), 2**bits - 1)


def _windowed(ds: Dataset, values: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return values through the first window on the scale 0..255, None where there is no window of positive width."""
    center, width = (np.atleast_1d(ds.get(word) or 0).astype(float)[0] for word in ("WindowCenter", "WindowWidth"))
    function = str(ds.get("VOILUTFunction") or "LINEAR").upper()
    if function not in _WINDOWS:
        raise BadImage(str(unknown("VOI LUT function", function, _WINDOWS)))
    if not width > 0:
        return None
    shown = np.empty(values.shape, np.float32)
    for i in range(0, len(values), _ROWS):
        unit = _WINDOWS[function](values[i : i + _ROWS].astype(np.float64), center, width)
        shown[i : i + _ROWS] = np.clip(unit, 0, 1) * 255
    return shown


def _linear(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.2.1; a width of 1 is a threshold."""
    return (x - (center - 0.5)) / max(width - 1, 1e-9) + 0.5


def _linear_exact(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.2."""
    return (x - center) / width + 0.5


def _sigmoid(x: NDArray[np.float64], center: float, width: float) -> NDArray[np.float64]:
    """PS3.3 C.11.2.1.3.1, 1 / (1 + exp(-4 t)), written as a tangent so that nothing overflows."""
    return 0.5 + 0.5 * np.tanh(2 * (x - center) / width)


def _unpadded(ds: Dataset, stored: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return the values that are not padding (PS3.3 C.7.5.1.1.2), or all of them where all are."""
    first = ds.get("PixelPaddingValue")
    if first is None:
        return values
    last = ds.get("PixelPaddingRangeLimit", first)
    seen = values[(stored < min(first, last)) | (stored > max(first, last))]
    return seen if seen.size else values


def _palette(ds: Dataset, stored: NDArray[Any], bits: int) -> DecodedImage:
    """Show indices through the palette; a palette of 8 bits stays 8 bits."""
    from pydicom.pixels.processing import apply_color_lut

    colour = apply_color_lut(stored, ds)[..., :3]
    depth = int(ds.RedPaletteColorLookupTableDescriptor[2])
    return from_array(colour, depth if int(colour.max()) < 2**depth else 0)


def _colour(ds: Dataset, stored: NDArray[Any], bits: int) -> DecodedImage:
    """Show colour, which pydicom has turned into RGB."""
    return from_array(stored, bits)


_WINDOWS: dict[str, Callable[[NDArray[np.float64], float, float], NDArray[np.float64]]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": _linear_exact,
    "SIGMOID": _sigmoid,
}

_SHOWN: dict[str, Callable[[Dataset, NDArray[Any], int], DecodedImage]] = {
    "MONOCHROME1": partial(_monochrome, inverted=True),
    "MONOCHROME2": _monochrome,
    "PALETTE COLOR": _palette,
    "RGB": _colour,
    "YBR_FULL": _colour,
    "YBR_FULL_422": _colour,
    "YBR_ICT": _colour,
    "YBR_RCT": _colour,
}
