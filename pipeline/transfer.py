"""transfer: does thawing on a source domain first help on a target? The detour against the direct way, paired."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.datasets import load_dataset
from features.errors import BadDataset, FirnError
from features.request import open_features
from features.storage import artifacts_root, slug, write_whole
from features.views import Cached, View, load_manifest
from models.domain_shift import Distances, measure
from models.finetuning.train import best_epoch
from models.heads import HEADS, choose_heads
from models.metrics import score
from models.runs.compare import paired, verdicts
from models.runs.features import Ask, Stage
from models.runs.record import Run, load_run
from models.runs.scores import LEVEL, as_dict, number, shown
from models.validation.cross_validation import choose_protocol
from pipeline.extract import extract
from pipeline.finetune import asked_thaw, finetuned, thawed_once, write_backbone
from pipeline.render.transfer_report import detour_lines

REPORTED = ("roc_auc", "balanced_accuracy")


def transfer(
    source: str,
    target: str,
    backbone: str,
    *,
    shared: str = "",
    heads: str = "logistic lda knn",
    thaw: bool = False,
    blocks: str = "1",
    recipe: str = "adamw",
    views: int = 1,
    flip: str = "none",
    labels: str = "classes",
    protocol: str = "cv",
    seed: int = 0,
    features: Mapping[str, str] | None = None,
    n_bootstrap: int = 2000,
    **given: Any,
) -> list[str]:
    """Thaw a backbone on the source (then on `shared`) and compare it, on the target, with the backbone as it came.

    Heads are trained on the target's features of both, in the same folds; with `thaw` both are thawed on the target
    too. Returns the report's lines, the last two with the paths of transfer.md and transfer.json. `features` are
    preprocess, precision_ and device_ as `resolve` takes them, `given` replaces settings of the recipe. Raises
    FirnError for a target that is among the domains, BadDataset for images of the target that lie in one of them.
    """
    choose_protocol(protocol)
    passed, names = [source, *([shared] if shared else [])], _of_features(heads)
    titles = _different([load_dataset(name, seed=seed).name for name in (*passed, target)])
    how = _How(dict(features or {}), asked_thaw(blocks, recipe, views, flip, seed, given), seed, n_bootstrap)
    first = [how.view(name, backbone) for name in (*passed, target)]
    _check_apart(titles, first)
    steps = how.thawed_on_all(passed, backbone)
    thawed = steps[-1]["backbone"]
    after = how.view(target, thawed)[1]
    ask = Ask(target, labels, protocol, seed)
    pairs = [(how.head(ask, backbone, name), how.head(ask, thawed, name)) for name in names]
    if thaw:
        pairs.append((how.network(ask, backbone), how.network(ask, thawed)))
    scored = shown(pairs[0][0])
    results = {
        "schema": 1,
        "passed": titles[:-1],
        "target": titles[-1],
        "backbone": backbone,
        "detour": thawed,
        "labels": labels,
        "protocol": protocol,
        "seed": seed,
        "n_bootstrap": n_bootstrap,
        "level": LEVEL,
        "images": len(np.unique(scored.ids)),
        "groups": len(np.unique(scored.groups)),
        "steps": steps,
        "distances": [
            {"domain": title, **_told(_distances(view, first[-1][1], after, seed))}
            for title, (_, view) in zip(titles[:-1], first[:-1], strict=True)
        ],
        "rows": _rows(pairs, how),
    }
    return _written(results)


def _different(titles: list[str]) -> list[str]:
    """Return the names of the data sets; FirnError where one comes twice."""
    if len(set(titles)) < len(titles):
        raise FirnError(f"expected different data sets as SOURCE, SHARED and TARGET, got {', '.join(titles)}")
    return titles


def _of_features(heads: str) -> list[str]:
    """Return the heads that were asked for; FirnError for those that need more than pooled features."""
    names = choose_heads(heads)
    fitting = [name for name in names if HEADS[name].input == "pooled"]
    if heads != "all" and len(fitting) < len(names):
        odd = next(name for name in names if name not in fitting)
        raise FirnError(f'{odd} needs more than pooled features; for transfer take HEADS="{" ".join(fitting)}"')
    return fitting


@dataclass(frozen=True)
class _How:
    """What every step has in common."""

    features: dict[str, str]
    thaw: Any  # precision -> Thaw
    seed: int
    n_bootstrap: int

    def view(self, dataset: str, backbone: str) -> tuple[Cached, View]:
        """Return the entry and the average-pooled last block of a data set, extracted where missing."""
        entry = self.stage(Ask(dataset, seed=self.seed), backbone).entries[0]
        stage = Stage([entry], Ask(dataset, seed=self.seed))
        return entry, stage.view("logistic", "1", "avg")[1]

    def stage(self, ask: Ask, backbone: str) -> Stage:
        """Return the features of a data set from a backbone, extracted where missing."""
        own: Any = {name.rstrip("_"): value for name, value in self.features.items()}
        extract(ask.dataset, backbone, seed=self.seed, **own)
        return Stage(open_features(load_dataset(ask.dataset, seed=self.seed), backbone, **self.features), ask)

    def thawed_on(self, dataset: str, backbone: str) -> dict[str, Any]:
        """Thaw a backbone on one domain; return the new backbone's name and how well it does there."""
        thawing, fit, test = thawed_once(Ask(dataset, seed=self.seed), backbone, self.features, self.thaw)
        known = len(np.unique(test.y)) == fit.proba.shape[1]
        scores = (
            score(test.y, fit.proba, test.groups, n_bootstrap=self.n_bootstrap, level=LEVEL, seed=self.seed)
            if known
            else {}
        )
        return {
            "dataset": thawing.request.dataset.name,
            "blocks": thawing.described,
            "backbone": write_backbone(thawing),
            "epochs": best_epoch(fit.history) + 1,
            "seconds": fit.seconds,
            "test": {name: as_dict(scores[name]) for name in ("roc_auc",) if known},
        }

    def thawed_on_all(self, passed: Sequence[str], backbone: str) -> list[dict[str, Any]]:
        """Thaw a backbone on one domain, the result on the next, and so on."""
        steps: list[dict[str, Any]] = []
        for name in passed:
            steps.append(self.thawed_on(name, steps[-1]["backbone"] if steps else backbone))
        return steps

    def head(self, ask: Ask, backbone: str, name: str) -> Run:
        """Return the run of a head on the target."""
        folder = self.stage(ask, backbone).train(name, "1", "avg", insist=True)
        assert folder is not None  # insist raises instead
        return load_run(folder)

    def network(self, ask: Ask, backbone: str) -> Run:
        """Return the run of a backbone that was thawed on the target."""
        (thawing,) = finetuned(ask, backbone, self.features, self.thaw)
        return load_run(thawing.folder())


def _check_apart(titles: Sequence[str], found: Sequence[tuple[Cached, View]]) -> None:
    """Raise BadDataset where bytes of a target's image lie in a domain too: its label would be known already."""
    *domains, target = [set(load_manifest(entry).sha256.tolist()) for entry, _ in found]
    for title, digests in zip(titles, domains, strict=False):
        if both := len(digests & target):
            raise BadDataset(
                f"{both} images of {titles[-1]} are in {title} too, so that a network thawed there has seen their "
                f"labels; take them out of one of the two"
            )


def _distances(domain: View, target: View, after: View, seed: int) -> Distances:
    groups = (domain.groups, target.groups)
    return measure(domain.X[:], groups[0], target.X[:], groups[1], after=after.X[:], seed=seed)


def _told(found: Distances) -> dict[str, Any]:
    """Return distances ready for JSON."""
    plain = {name: number(getattr(found, name)) for name in ("frechet", "floor")}
    cka = None if found.cka is None or math.isnan(found.cka) else found.cka
    sides = {"images": list(found.images), "groups": list(found.groups)}
    return {**plain, "directions": found.directions, "auc": as_dict(found.auc), "cka": cka, **sides}


def _rows(pairs: Sequence[tuple[Run, Run]], how: _How) -> list[dict[str, Any]]:
    """Return for each head both ways with scores, and the test of their difference, corrected by Holm for all."""
    parts = [(shown(direct), shown(detour)) for direct, detour in pairs]
    tests = verdicts([paired(a, b, seed=how.seed, n_bootstrap=how.n_bootstrap) for a, b in parts])
    return [
        {
            "head": direct.facts["head"],
            "view": direct.facts["view"],
            "direct": _scored(direct, how),
            "detour": _scored(detour, how),
            **test,
        }
        for (direct, detour), test in zip(pairs, tests, strict=True)
    ]


def _scored(run: Run, how: _How) -> dict[str, Any]:
    part = shown(run)
    scores = score(part.y, part.proba, part.groups, n_bootstrap=how.n_bootstrap, level=LEVEL, seed=how.seed)
    return {"folder": str(run.folder), **{name: as_dict(scores[name]) for name in REPORTED}}


def _written(results: Mapping[str, Any]) -> list[str]:
    """Write transfer.md and transfer.json; return the report and their paths."""
    way = "-".join([*results["passed"], results["target"], results["backbone"]])
    marks = [results[name] for name, usual in (("labels", "classes"), ("protocol", "cv")) if results[name] != usual]
    folder = artifacts_root() / "transfer" / slug("-".join([way, *marks]))
    lines = detour_lines(results)
    write_whole(folder / "transfer.md", ["\n".join(lines).encode() + b"\n"])
    write_whole(folder / "transfer.json", [json.dumps(results, indent=1, allow_nan=False).encode()])
    return [*lines, "", str(folder / "transfer.md"), str(folder / "transfer.json")]
