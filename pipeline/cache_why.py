"""cache-why: whether features are ready and, if not, in words what changed."""

from __future__ import annotations

from features.cache.changes import changes, read_unknown
from features.datasets import load_dataset
from features.progress import shown
from features.request import Request, resolve

__all__ = ["why"]

_NAMED = 3  # pictures named of each kind
_NEAREST = 3  # entries compared with


def why(dataset: str, backbone: str, **recipe: str) -> list[str]:
    """Return the state of each request in words, with what changed in the data set or in the recipe since.

    Pictures whose size or times changed are read, to tell whether their bytes did; nothing is written.
    """
    lines = []
    for request in resolve(load_dataset(dataset), backbone, **recipe):
        state = request.state()
        lines.append(f"{state.word}: {request.dataset.name} {request.recipe.name} {state.why}")
        if state.word == "missing":
            lines += _other_entries(request)
        elif state.word != "ready":
            lines += _changed_pictures(request)
        if state.word != "ready":
            lines.append(f"run: {request.command()}")
    return lines


def _other_entries(request: Request) -> list[str]:
    """Compare the key asked for with those of the nearest entries."""
    near = request.nearest()
    same = [entry for entry in near if entry.key.backbone == request.recipe.name]
    lines = []
    for entry in (same or near)[:_NEAREST]:
        lines.append(f"  {entry.folder.name} is there, but")
        lines += [f"    {difference}" for difference in entry.key.differences(request.entry.key)]
    return lines


def _changed_pictures(request: Request) -> list[str]:
    """Count what changed since the master was written and name the first few pictures of each kind."""
    manifest = request.entry.manifest()
    if manifest is None:
        return []
    with shown(f"read {request.dataset.name}") as progress:
        digests = read_unknown(request.dataset, request.digests(), progress=progress)
    found = changes(manifest, request.dataset, digests)
    return [f"  {kind}: {_some(pictures)}" for kind, pictures in found.items()]


def _some(pictures: list[str]) -> str:
    more = ", ..." if len(pictures) > _NAMED else ""
    return f"{len(pictures):,} ({', '.join(pictures[:_NAMED])}{more})"
