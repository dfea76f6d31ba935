"""HDF5 files built in memory and sealed: the first 512 bytes (HDF5's user block) hold a digest of all that follows.

Building in memory keeps half-written HDF5 off the disk, and a full disk is a plain OSError from `write`. Stock
HDF5 tools skip the user block: https://docs.hdfgroup.org/hdf5/latest/_h5_f__u_g.html (user block).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import h5py
import xxhash

from features.errors import CacheError
from features.storage import write_whole

__all__ = ["USER_BLOCK", "build", "digest_of", "is_whole", "seal", "write_sealed"]

USER_BLOCK = 512
_numbers = itertools.count()
_PREFIX = b"Firn sealed HDF5, xxh3-128 of all bytes after the first 512: "


def build(fill: Callable[[h5py.File], None]) -> bytes:
    """Return the bytes of an HDF5 file filled by `fill`; the format (1.10) checksums its own metadata."""
    name = f"memory-{next(_numbers)}"  # HDF5 takes two open files of one name for the same file
    with h5py.File(name, "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        fill(file)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def seal(digest: str) -> bytes:
    """Return the user block of a file, given the xxh3-128 (hex) of all that follows."""
    return (_PREFIX + digest.encode() + b"\n").ljust(USER_BLOCK, b"\0")


def write_sealed(path: Path, image: bytes, *, replace: bool = True) -> None:
    """Write user block and image so that `path` is absent, as before, or whole."""
    write_whole(path, [seal(xxhash.xxh3_128_hexdigest(image)), image], replace=replace)


def digest_of(path: Path) -> str:
    """Return the digest that the file claims for itself, in hex.

    Raises CacheError where the file has no seal.
    """
    with path.open("rb") as file:
        head = file.read(USER_BLOCK)
    if not head.startswith(_PREFIX):
        raise CacheError(f"{path} has no seal; run: make cache-verify")
    return head[len(_PREFIX) : len(_PREFIX) + 32].decode("ascii", "replace")


def is_whole(path: Path, *, chunk: int = 1 << 22) -> bool:
    """Tell whether every byte of the file is as it was sealed. OSError passes through."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        head = file.read(USER_BLOCK)
        while piece := file.read(chunk):
            hasher.update(piece)
    return head == seal(hasher.hexdigest())
