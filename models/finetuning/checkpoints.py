"""Checkpoints of a training: tensors and plain values in one safetensors file, whole or absent."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.storage import write_whole

if TYPE_CHECKING:
    from torch import Tensor


def save_checkpoint(
    path: Path, identity: str, parts: Mapping[str, Mapping[str, Tensor]], values: Mapping[str, Any]
) -> None:
    """Write the parts of a training ({part: {name: tensor}}) and plain values; no pickle."""
    from safetensors.torch import save

    tensors = {
        f"{part}/{name}": t.detach().cpu().contiguous() for part, some in parts.items() for name, t in some.items()
    }
    text = {"identity": identity, "values": json.dumps(values)}
    write_whole(path, [save({name: tensor.clone() for name, tensor in tensors.items()}, metadata=text)])


def load_checkpoint(path: Path, identity: str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
    """Return what `save_checkpoint` wrote for the same identity; None for none, for another, or for a broken file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            text = file.metadata()
            if text["identity"] != identity:
                return None
            parts: dict[str, dict[str, Tensor]] = {"network": {}, "average": {}, "best": {}, "optimiser": {}}
            for key in file.keys():  # noqa: SIM118 - not a mapping
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
            return parts, json.loads(text["values"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint that is not needed any more."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def save_network(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the tensors of a network with its whole configuration as safetensors."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_whole(path, [save(plain, metadata={"firn": json.dumps(about)})])


def load_network(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and configuration that `save_network` wrote. OSError and SafetensorError pass through."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        return tensors, json.loads((file.metadata() or {}).get("firn", "{}"))


def is_network(path: Path) -> bool:
    """Tell whether a file is there that `save_network` wrote, as long as it was; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return "firn" in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def load_seen(path: Path) -> frozenset[str]:
    """Return the digests (16 hex digits) of the images that a saved backbone was fine-tuned on; none for none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            return frozenset(json.loads((file.metadata() or {}).get("firn", "{}")).get("seen", ()))
    except (OSError, SafetensorError, ValueError, AttributeError):
        return frozenset()
