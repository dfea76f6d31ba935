"""The verbs of the cache: ls, verify, repair, why, gc, pack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple

from features.backbones import BACKBONES, load_spec, weights
from features.backbones.registry import architecture
from features.cache import Digests, Entry
from features.cache.entry import cache_root, changes, last_used, read_unknown
from features.cache.gc import Survey, Waste, abandoned, bytes_below, remove, survey
from features.cache.index import Manifest
from features.cache.pack import SUFFIXES, is_pack, open_pack, write_pack
from features.cache.verify import Damage, find_entries, verify
from features.datasets import DATASETS, Dataset, load_dataset
from features.datasets.load import at_hand
from features.devices import choose_device
from features.errors import BadWeights, CacheError
from features.extraction.engine import fill
from features.options import (
    DATA,
    ExtractOptions,
    FeatureOptions,
    Taking,
    make_command,
    names_in,
    option,
    replaced,
)
from features.progress import say, shown
from features.request import Request, resolve
from features.storage import artifacts_root
from features.views import choose_blocks
from models.runs.current import stale_runs
from models.runs.record import load_record


def find(dataset: str) -> list[Entry]:
    """Return the entries of one data set, or of all."""
    root = artifacts_root() / "cache"
    roots = [cache_root(load_dataset(dataset).name)] if dataset else sorted(p for p in root.glob("*") if p.is_dir())
    return [entry for folder in roots for entry in find_entries(folder)]


def place(entry: Entry) -> str:
    """Return an entry's name in lists: data set and folder."""
    return f"{entry.folder.parent.name}/{entry.folder.name}"


def megabytes(size: int) -> str:
    """Return bytes in words."""
    return f"{size / 1e6:,.1f} MB"


@dataclass(frozen=True)
class EntriesOptions:
    """Of which data set."""

    dataset: str = option("", "A data set, or a pack; empty is every entry of the cache.")


@dataclass(frozen=True)
class RemoveOptions:
    """Whether anything is removed."""

    yes: bool = option(False, "Remove what is listed; without it nothing is touched.")
    run: str = option("", "The folder of a run that may go too, below artifacts/heads.")

    def waste(self) -> list[Waste]:
        """Return the folder of the run that was named, if any. CacheError for a folder that is no run's."""
        if self.run and load_record(Path(self.run)) is None:
            raise CacheError(f"expected RUN= to be the folder of a run (with a run.json), got {self.run}")
        return [Waste(Path(self.run), bytes_below(Path(self.run)), "named by RUN=")] if self.run else []


@dataclass(frozen=True)
class PackOptions:
    """Where the pack goes."""

    out: str = option("", "The file to write, ending in .h5; empty is a name below artifacts/packs.")


def cache_verify(of: EntriesOptions) -> tuple[list[str], int]:
    """Read every byte of all entries, those of a data set, or a pack; return what to tell, and 2 for damage."""
    if is_pack(of.dataset):
        return _verify_pack(Path(of.dataset))
    lines, again = list[str](), list[str]()
    for entry in find(of.dataset):
        damages = verify(entry)
        lines.append(
            f"{'damaged' if damages else 'whole'}: {place(entry)}, {megabytes(bytes_below(entry.folder))} read"
        )
        lines += [_told(damage) for damage in damages]
        again += [_mended(entry, of.dataset)] * bool(damages)
    return [*lines, *dict.fromkeys(again)] or ["the cache is empty"], 2 if again else 0


def _mended(entry: Entry, asked: str) -> str:
    """Return what mends an entry of the set that was asked for; where none was, a name does not tell its path."""
    name = entry.folder.parent.name
    if asked or name in DATASETS:
        return f"run: {make_command('cache-repair', dataset=asked or name)}"
    return f"cache-repair with the path of {name} as DATASET= mends it"


def _verify_pack(path: Path) -> tuple[list[str], int]:
    """Check the seal of a pack; where it is broken, say what a reader would meet."""
    pack = open_pack(path)
    if pack.whole():
        return [f"whole: {path}, {megabytes(bytes_below(path))} read"], 0
    return [f"damaged: {path}, its bytes do not match their seal; fetch it again"], 2


def _told(damage: Damage) -> str:
    """Return a line for a damaged file with the images that it held."""
    if not damage.images:
        return f"  {damage.path}: {damage.reason}"
    shown = "\n".join(f"    {image}" for image in damage.images)
    return f"  {damage.path}: {damage.reason}; it held {len(damage.images)} images:\n{shown}"


Machine = Annotated[FeatureOptions, Taking(*DATA, "device")]


def cache_repair(features: Machine, how: Annotated[ExtractOptions, Taking("workers")]) -> list[str]:
    """Take out what is damaged in the entries of a data set and compute just that again; return one line per entry.

    Raises CacheError where an entry's backbone has other weights now than when it was filled.
    """
    images = features.data.load()
    images.source.stamps([])  # a pack has no images and says so before anything is taken out
    lines = []
    for entry in find_entries(cache_root(images.name)):
        damages = verify(entry)
        blocks = tuple(block for block in entry.key.blocks if entry.files(f"maps/{block}"))
        if not damages:
            lines.append(f"whole: {entry.folder.name}")
            continue
        way = entry.key.preprocess_mode
        spec = load_spec(entry.key.backbone)
        for_thawing = entry.key.blocks != tuple(spec.blocks)
        asked = spec.key(preprocess=way, precision=entry.key.precision, stored=entry.key.stored)
        if asked != entry.key and not for_thawing:
            raise CacheError(
                f"{entry.folder} was filled with other weights or preprocessing than {spec.name} has now; "
                f"give those weights back (FIRN_WEIGHTS), or remove the folder and run: make extract"
            )
        for damage in damages:
            say(f"taking out {damage.path}: {damage.reason}")
            damage.path.unlink(missing_ok=True)
        if for_thawing:
            lines.append(f"taken out: {entry.folder.name}, {len(damages)} files; make finetune computes them again")
            continue
        fill([(Request(images, spec, way, choose_device(features.device), entry, features), blocks)], how)
        lines.append(f"repaired: {entry.folder.name}, {len(damages)} files")
    return lines or [f"no entries of {images.name}"]


def cache_gc(features: FeatureOptions, confirm: RemoveOptions) -> list[str]:
    """Return what may go of the cache of a data set, one line each; with `yes` remove it.

    That is: what dead writers left behind, shards whose images are gone, and entries of the backbones (those given,
    else all) that today's weights, preprocessing and precision would not use, runs of other images, labels or splits
    than the data set has now, and the run that is named. Never images, never what a living writer holds.
    """
    images = features.data.load()
    found = _survey(images, features)
    stale = [Waste(path, bytes_below(path), f"a run of other data: {why}") for path, why in stale_runs(images)]
    verb, every = "removed" if confirm.yes else "would remove", [*found.waste, *stale, *confirm.waste()]
    waste = remove(every) if confirm.yes else every
    lines = [f"{verb}: {item.path}, {megabytes(item.size)}: {item.why}" for item in waste]
    lines += [f"kept: {line}" for line in found.kept]
    total = f"{len(waste)} files and folders, {megabytes(sum(item.size for item in waste))}"
    if not waste:
        return [*lines, f"nothing to remove of {images.name}"]
    again = make_command("cache-gc", features, run=confirm.run, yes=True)
    return [*lines, f"removed {total}" if confirm.yes else f"would remove {total}; to do so run: {again}"]


def _survey(images: Dataset, features: FeatureOptions) -> Survey:
    """Look through everything that the cache has of a data set."""
    root, backbones = cache_root(images.name), names_in(features.backbone)
    digests = _digests(images)
    waste, kept = abandoned(root) + abandoned(artifacts_root() / "cache"), []
    by_backbone: dict[str, list[Entry]] = {}
    for entry in find_entries(root):
        by_backbone.setdefault(entry.key.backbone, []).append(entry)
    for name, found in by_backbone.items():
        if backbones and name not in backbones:
            continue
        try:
            asked = _asked(images, replaced(features, backbone=name))
        except BadWeights as error:
            kept += [f"{entry.folder}: {error}" for entry in found]
            continue
        for entry in found:
            part = survey(entry, images, digests, asked.key)
            waste, kept = waste + part.waste, kept + part.kept
    return Survey(waste, kept)


def _asked(images: Dataset, features: FeatureOptions) -> Entry:
    """Return the entry that a run would use today. BadWeights where that cannot be told without a download."""
    row = BACKBONES.get(architecture(features.backbone))
    if weights.find(features.backbone, row.file if row else "", features.weights or None) is None:
        raise BadWeights(f"no weights of {features.backbone} here, so it cannot be told whether a run would use it")
    return resolve(images, features)[0].entry


class Listed(NamedTuple):
    """One line of the list."""

    entry: str  # data set and folder
    images: str  # rows of images wanted when the master was written
    parts: str
    size: str
    state: str
    used: str  # when last


def cache_ls(of: EntriesOptions) -> list[str]:
    """List every cache entry with its images, parts, bytes, state and when it was last used."""
    print_entries(list_entries(of.dataset))
    return []


def list_entries(dataset: str = "") -> list[Listed]:
    """Return one line per entry of a data set, or of all; reads no image and writes nothing.

    The state is that against the data set as it is now, where its images are here.
    """
    found = find(dataset)
    given = [load_dataset(dataset)] if dataset else []
    names = {entry.folder.parent.name for entry in found} if not given else set()
    sets = {d.name: d for d in [*given, *filter(None, map(at_hand, sorted(names)))]}
    digests = {name: _digests(d) for name, d in sets.items()}
    return [_listed(e, dataset, sets.get(e.folder.parent.name), digests.get(e.folder.parent.name)) for e in found]


def _digests(dataset: Dataset) -> Digests:
    memo = Digests.load(cache_root(dataset.name) / "digests.h5")
    return Digests.of(dataset.ids, dataset.source.stamps(dataset.ids), memo)


def _listed(entry: Entry, asked: str, dataset: Dataset | None, digests: Digests | None) -> Listed:
    size = megabytes(bytes_below(entry.folder))
    when = last_used(entry)
    used = datetime.fromtimestamp(when).isoformat(" ", "minutes") if when else "never"
    try:
        manifest = entry.manifest()
        state = _state(entry, manifest, dataset, digests)
    except CacheError:
        return Listed(place(entry), "", "", size, f"damaged master; {_mended(entry, asked)}", used)
    images = f"{len(manifest.ids):,} of {manifest.about['wanted']:,}" if manifest else "no master"
    return Listed(place(entry), images, ", ".join(manifest.parts) if manifest else "", size, state, used)


def _state(entry: Entry, manifest: Manifest | None, dataset: Dataset | None, digests: Digests | None) -> str:
    """Return the state in words; "ready" without any more."""
    if dataset is None or digests is None:
        return "images not here" if entry.folder.parent.name in DATASETS else "not compared: DATASET= gives its path"
    state = entry.state(dataset, digests, manifest.parts if manifest else ("pooled",))
    return state.word if state.word == "ready" else f"{state.word}: {state.why}"


def print_entries(lines: Iterable[Listed]) -> None:
    """Write the list to stdout: a table on a terminal, columns elsewhere."""
    from rich.console import Console
    from rich.table import Table

    rows = list(lines)
    out = Console()
    if not out.is_terminal or not rows:
        out.file.write("".join(f"{line}\n" for line in _columns(rows)))
        return
    table = Table(*Listed._fields, box=None, header_style="bold", pad_edge=False)
    for column in (1, 3):
        table.columns[column].justify = "right"
    for row in rows:
        table.add_row(*row)
    out.print(table, markup=False)


def _columns(rows: list[Listed]) -> list[str]:
    """Return header and rows in columns two blanks apart."""
    if not rows:
        return ["the cache is empty"]
    cells = [Listed._fields, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def cache_pack(features: FeatureOptions, how: Annotated[ExtractOptions, Taking("maps")], to: PackOptions) -> list[str]:
    """Pack the ready entries of one or several backbones; return one line per file.

    Files go to `out` (one backbone only) or into artifacts/packs. Raises CacheError, saying why, for what is not
    ready, and for a place that belongs to the cache itself.
    """
    requests = resolve(features.data.load(), features)
    if to.out and len(requests) > 1:
        raise CacheError(f"OUT= takes one backbone, and {len(requests)} are asked for; leave OUT= away")
    return [_packed(r, _checked(Path(to.out)) if to.out else _default(r), how.maps) for r in requests]


def _packed(request: Request, path: Path, maps: str) -> str:
    blocks = choose_blocks(list(request.spec.blocks), maps) if maps else ()
    parts = ("pooled", *(f"maps/{block}" for block in blocks))
    entry = request.ready(parts)
    with shown(f"pack {request.dataset.name} with {request.spec.name}", "bytes") as progress:
        manifest = write_pack(entry, path, parts, progress=progress)
    say(f"next: {make_command('train-heads', dataset=path)}")
    return f"packed: {len(manifest.ids):,} images, {', '.join(parts)}, {megabytes(bytes_below(path))} {path}"


def _default(request: Request) -> Path:
    return artifacts_root() / "packs" / f"{request.dataset.name}-{request.entry.folder.name}{SUFFIXES[0]}"


def _checked(path: Path) -> Path:
    """Return a place for a pack that is neither a folder, nor in the cache, nor under a name that no reader expects."""
    if path.suffix.lower() not in SUFFIXES or path.is_dir():
        raise CacheError(f"OUT={path} is no place for a pack; give a file name that ends in {' or '.join(SUFFIXES)}")
    if path.resolve().is_relative_to((artifacts_root() / "cache").resolve()):
        raise CacheError(f"OUT={path} lies in the cache itself; give another folder")
    return path


_NAMED = 3  # images named of each kind
_NEAREST = 3  # entries compared with


def cache_why(features: FeatureOptions) -> list[str]:
    """Return the state of each request in words, with what changed in the data set or in the recipe since.

    Images whose size or times changed are read, to tell whether their bytes did; nothing is written.
    """
    lines = []
    for request in resolve(features.data.load(), features):
        state = request.state()
        lines.append(f"{state.word}: {request.dataset.name} {request.spec.name} {state.why}")
        if state.word == "missing":
            lines += _other_entries(request)
        elif state.word != "ready":
            lines += _changed_images(request)
        if state.word != "ready":
            lines.append(f"run: {request.command()}")
    return lines


def _other_entries(request: Request) -> list[str]:
    """Compare the key asked for with those of the nearest entries."""
    near = request.nearest()
    same = [entry for entry in near if entry.key.backbone == request.spec.name]
    lines = []
    for entry in (same or near)[:_NEAREST]:
        lines.append(f"  {entry.folder.name} is there, but")
        lines += [f"    {difference}" for difference in entry.key.differences(request.entry.key)]
    return lines


def _changed_images(request: Request) -> list[str]:
    """Count what changed since the master was written and name the first few images of each kind."""
    manifest = request.entry.manifest()
    if manifest is None:
        return []
    with shown(f"read {request.dataset.name}") as progress:
        digests = read_unknown(request.dataset, request.digests(), progress=progress)
    found = changes(manifest, request.dataset, digests)
    return [f"  {kind}: {_some(images)}" for kind, images in found.items()]


def _some(images: list[str]) -> str:
    more = ", ..." if len(images) > _NAMED else ""
    return f"{len(images):,} ({', '.join(images[:_NAMED])}{more})"
