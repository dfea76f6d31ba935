"""JPEG lossless and 12-bit JPEG inside DICOM, decoded by libjpeg-turbo; importing this makes pydicom use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom import uid
from pydicom.pixels.decoders.base import get_decoder

from features.errors import BadImage

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

_SYNTAXES = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGExtended12Bit)


def is_available(syntax: str) -> bool:
    """Tell pydicom that the decoder of a transfer syntax is installed."""
    return syntax in _SYNTAXES


def decode_frame(frame: bytes, runner: DecodeRunner) -> bytes:
    """Return the samples of one JPEG frame, in 8 or 16 bits by its precision; `BadImage` where it is truncated."""
    from imagecodecs import jpeg8_decode

    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise BadImage("truncated: expected a JPEG frame with an end")  # libjpeg fills up with grey, and only warns
    colour = "YCBCR" if runner.samples_per_pixel == 3 else None  # the same on both sides: nothing is converted
    samples = jpeg8_decode(frame, colorspace=colour, outcolorspace=colour)
    runner.set_option("bits_allocated", samples.dtype.itemsize * 8)
    return bytes(samples.tobytes())


for _syntax in _SYNTAXES:
    get_decoder(_syntax).add_plugin("firn", (__name__, "decode_frame"))
