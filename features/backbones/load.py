"""The spec of a backbone, from memory where its weights file is as it was, else out of the network itself."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from features.backbones import weights
from features.backbones.registry import BACKBONES, architecture, domains, library_of
from features.backbones.spec import BackboneSpec
from features.errors import BadWeights, FirnError
from features.storage import artifacts_root, write_whole

_FORMAT = 2  # raised when a spec has another field


def load_spec(name: str, given: str | Path | None = None) -> BackboneSpec:
    """Return the spec of a backbone, from memory where the weights file is as it was, else through torch.

    "resnet18@pneumonia" is resnet18 as it was fine-tuned on pneumonia, "resnet18@320" sees images of 320 pixels.
    `given` is a weights file of the user's. Raises UnknownName or BadWeights.
    """
    line = BACKBONES.get(architecture(name))
    file = weights.find(name, line.file if line else "", given)
    if file is not None and (known := _remembered(_stamp(name, file))):
        return known
    spec = make_spec(name, given)
    _remember(_stamp(name, spec.file), spec)
    return spec


def make_spec(name: str, given: str | Path | None = None) -> BackboneSpec:
    """Build the spec from the network itself, remembering nothing; imports torch. Raises UnknownName, BadWeights."""
    from features.backbones import build

    line = build.row(name)
    preset = line.preset
    assert preset is not None
    file = weights.find(name, line.file, given) or build.LIBRARIES[line.library].download(name, line)
    size, _ = build.side_and_channels(line)
    whole = build.network(line, "meta")
    module = build.cut(line, whole, line.blocks)
    digest = weights.digest(build.load_weights(line, module, whole, file))
    try:
        build.check_maps(line, whole, module)
        largest, shapes = build.tried(module, preset.mean, preset.std, size)
    except RuntimeError as error:  # of torch: a kernel larger than the maps, no memory for them
        if not line.size:
            raise
        raise FirnError(
            f"{name} cannot see images of {size} pixels ({str(error).splitlines()[0]}); give another SIZE="
        ) from None
    blocks = {block: shapes[block] for block in line.blocks}
    return BackboneSpec(
        name=name,
        file=file,
        weights=digest,
        blocks=blocks,
        size=size,
        resize=round(preset.resize * size / preset.size),
        interpolation=preset.interpolation,
        mean=preset.mean,
        std=preset.std,
        largest=largest,
        class_token=build.has_class_token(module),
    )


def spec_of_digest(name: str, digest: str) -> BackboneSpec:
    """Return the spec of a backbone with the weights of a digest, wherever `weights.find` would look for them.

    Nothing is remembered. Raises UnknownName; BadWeights, saying which weights are there, where those are not.
    """
    from features.backbones import build

    file, seen = build.row(name).file, []
    for path in weights.candidates(name, file):
        spec = make_spec(name, path)
        if spec.weights == digest:
            return spec
        seen.append(f"{path} has {spec.weights[:12]}")
    if not seen and not domains(name):
        spec = make_spec(name)  # the library's download
        if spec.weights == digest:
            return spec
        seen.append(f"{library_of(name)}'s have {spec.weights[:12]}")
    raise BadWeights(
        f"expected weights of {name} with the digest {digest[:12]}, got {'; '.join(seen) or 'none'}; "
        f"put the right file into the folder FIRN_WEIGHTS, or ask for a bundle that was made WITH_WEIGHTS=1"
    )


def _memo() -> Path:
    return artifacts_root() / "cache" / "recipes.json"


def _stamp(name: str, file: Path) -> str:
    """Return what must be as it was for a remembered spec to hold."""
    stat = file.stat()
    return f"{_FORMAT}|{name}|{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{library_of(name)} {_version(name)}"


def _version(name: str) -> str:
    """Return the version of the library that a backbone comes from; empty where it is not installed."""
    try:
        return version(library_of(name))
    except PackageNotFoundError:
        return ""


def _all_remembered() -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(_memo().read_text())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def _remembered(stamp: str) -> BackboneSpec | None:
    """Return the spec remembered under a stamp; a memo that does not read is no memo."""
    try:
        values = _all_remembered()[stamp]
        blocks = {block: (int(c), int(h), int(w)) for block, (c, h, w) in values.pop("blocks")}
        file, mean, std = Path(values.pop("file")), tuple(values.pop("mean")), tuple(values.pop("std"))
        return BackboneSpec(**values, blocks=blocks, file=file, mean=mean, std=std)
    except (KeyError, TypeError, ValueError):
        return None


def _remember(stamp: str, spec: BackboneSpec) -> None:
    values = asdict(spec) | {"file": str(spec.file), "blocks": [[b, list(s)] for b, s in spec.blocks.items()]}
    write_whole(_memo(), [json.dumps(_all_remembered() | {stamp: values}, indent=1).encode()])
