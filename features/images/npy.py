"""Arrays in NumPy's `.npy` format: rows of a MedMNIST archive, or what a script has saved."""

from __future__ import annotations

import io
import math
from functools import partial

import numpy as np
from numpy.lib import format as npy

from features.errors import BadImage
from features.images.image import ImageFacts, Opened, from_array

_READ_HEADER = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def open_npy(data: bytes) -> Opened:
    """Open an array (H, W), (H, W, 1) or (H, W, 3) of integers or floats; objects are never unpickled."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version not in _READ_HEADER:
        raise BadImage(f"expected .npy version 1 or 2, got {version}")
    shape, by_column, dtype = _READ_HEADER[version](stream)
    if dtype.kind not in "uif":
        raise BadImage(f"expected an array of integers or floats, got {dtype}")
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))) or min(shape) < 0:
        raise BadImage(f"expected an array (H, W), (H, W, 1) or (H, W, 3), got {shape}")
    # a view of `data`: numpy.load would take the memory that the header asks for before it looks at the length
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=stream.tell())
    array = flat.reshape(shape, order="F" if by_column else "C").astype(dtype.newbyteorder("="), copy=False)
    channels = shape[2] if len(shape) == 3 else 1
    photometric = "grey" if channels == 1 else "rgb"
    facts = ImageFacts("NPY", shape[1], shape[0], channels, dtype.itemsize * 8, photometric)
    return Opened(facts, partial(from_array, array), lambda: array)
