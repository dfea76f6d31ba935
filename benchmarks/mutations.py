"""How an input is damaged: a few changes drawn from a seed, then sums and lengths put right as an attacker would."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from features.cache.sealed import USER_BLOCK, seal

__all__ = ["Repair", "in_zip", "mutated", "plain", "png_sums", "sealed"]

Repair = Callable[[np.random.Generator, bytes, Sequence[bytes]], bytes]
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (b"\0", b"\n", b'"', b",", b";", b"../", b"/etc/passwd", b"=1+1", b"\xff\xfe", b"\xef\xbb\xbf", b"NaN", b"-1")
WORDS += (b"1e999", b"train", b"path,label\n", b"9" * 400, b"A" * 5000, b"{", b"}", b"[[[[", b"<f8", b"|O", b"None")


def mutated(rng: np.random.Generator, samples: Sequence[bytes], repair: Repair) -> bytes:
    """Return one of `samples` with one to a dozen changes."""
    data = samples[int(rng.integers(len(samples)))]
    return repair(rng, data, samples)


def plain(rng: np.random.Generator, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Change bytes, fields, pieces; nothing is put right."""
    out = bytearray(data)
    for _ in range(1 + min(int(rng.geometric(0.35)), 12)):
        if out:
            CHANGES[int(rng.integers(len(CHANGES)))](rng, out, samples)
    return bytes(out)


def _flip(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    out[_place(rng, out)] ^= 1 << int(rng.integers(8))


def _byte(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    out[_place(rng, out)] = int(rng.integers(256))


def _number(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    """Overwrite a field of 2, 4 or 8 bytes with a number on the edge."""
    value, width = NUMBERS[int(rng.integers(len(NUMBERS)))], int(rng.choice([2, 4, 8]))
    field = (value % (1 << (8 * width))).to_bytes(width, "big" if rng.random() < 0.5 else "little")
    at = _place(rng, out)
    out[at : at + width] = field[: len(out) - at]


def _cut(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    del out[_place(rng, out) :]


def _drop(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    at = _place(rng, out)
    del out[at : at + int(rng.geometric(0.05))]


def _double(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    at, length = _place(rng, out), int(rng.geometric(0.02))
    out[at:at] = out[at : at + length]


def _word(rng: np.random.Generator, out: bytearray, _: Sequence[bytes]) -> None:
    at = _place(rng, out)
    out[at : at + int(rng.integers(4))] = WORDS[int(rng.integers(len(WORDS)))]


def _splice(rng: np.random.Generator, out: bytearray, samples: Sequence[bytes]) -> None:
    """Continue with the end of another sample."""
    other = samples[int(rng.integers(len(samples)))]
    at = _place(rng, out)
    out[at:] = other[int(at * len(other) / len(out)) :]


def _place(rng: np.random.Generator, out: bytearray) -> int:
    """Return a place, in half of the cases near the front, where headers are."""
    most = min(len(out), 256) if rng.random() < 0.5 else len(out)
    return int(rng.integers(most))


CHANGES = (_flip, _byte, _number, _cut, _drop, _double, _word, _splice, _flip, _byte, _number, _number)


def png_sums(rng: np.random.Generator, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Change a PNG and put the sums of its chunks right in most cases."""
    out = plain(rng, data, samples)
    if rng.random() < 0.25:
        return out
    fixed, at = bytearray(out), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(bytes(fixed[at + 4 : end])))
        at = end + 4
    return bytes(fixed)


def sealed(rng: np.random.Generator, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Change a sealed file and seal it anew in most cases."""
    out = plain(rng, data, samples)
    if rng.random() < 0.25 or len(out) < USER_BLOCK:
        return out
    return seal(xxhash.xxh3_128_hexdigest(out[USER_BLOCK:])) + out[USER_BLOCK:]


def in_zip(rng: np.random.Generator, data: bytes, samples: Sequence[bytes]) -> bytes:
    """Change one file inside a zip in most cases, else the zip itself."""
    if rng.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(data)):
        return plain(rng, data, samples)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        kind = archive.infolist()[0].compress_type
    name = list(members)[int(rng.integers(len(members)))]
    members[name] = plain(rng, members[name], list(members.values()))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", kind) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return target.getvalue()
