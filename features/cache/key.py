"""The key of a cache entry: all that changes the numbers, and nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

SCHEMA = 1  # raised when the meaning of a stored number changes


@dataclass(frozen=True)
class Key:
    """What makes two runs give the same features. Versions and hardware are recorded elsewhere, not keyed."""

    backbone: str
    weights: str  # sha256 over names, shapes and values of the tensors in use
    blocks: tuple[str, ...]  # every tapped block, in the order of the network
    preprocess: str  # one line: geometry, interpolation, mean, standard deviation
    precision: str  # "float32", "tf32", "bfloat16" or "float16": the arithmetic of the forward pass
    stored: str = "float16"  # the numbers on the disk
    schema: int = SCHEMA

    @property
    def preprocess_mode(self) -> str:
        """Return how an image of any shape becomes a square: "squash", "pad" or "crop"."""
        return self.preprocess.partition(":")[0]

    def to_json(self) -> str:
        """Return the canonical text that is digested and stored."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Key:
        """Return the key written by `to_json`; fields that this version does not know are ignored."""
        values = json.loads(text)
        values["blocks"] = tuple(values["blocks"])
        return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})

    def digest(self) -> str:
        """Return the sha256 of the canonical text, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def folder(self) -> str:
        """Return the name of the entry's folder."""
        return f"{self.backbone.replace('/', '.')}-{self.digest()[:8]}"

    def differences(self, other: Key) -> list[str]:
        """Say in words what changed from `self` (cached) to `other` (asked for)."""
        old, new = asdict(self), asdict(other)
        return [
            f"the {name} changed: {_short(old[name])} -> {_short(new[name])}" for name in old if old[name] != new[name]
        ]


def _short(value: object) -> str:
    """Return digests by their first twelve characters, everything else whole."""
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
