"""transfer: does fine-tuning on a source domain first help on a target? The detour against the direct way, paired."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from features.datasets import load_dataset
from features.errors import BadDataset, FirnError
from features.options import DatasetOptions, ExtractOptions, FeatureOptions, Taking, make_command, option, replaced
from features.progress import say
from features.request import open_features
from features.storage import artifacts_root, slug, write_whole
from features.views import Cached, View, load_manifest
from models.domain_shift import Distances, measure
from models.finetuning.settings import FinetuneOptions
from models.finetuning.train import best_epoch
from models.heads import HEADS
from models.metrics import score
from models.runs.compare import against_each_other
from models.runs.features import Stage
from models.runs.finetune import finetuned, finetuned_once, write_backbone
from models.runs.options import HeadOptions, RunOptions, SeedOptions
from models.runs.record import Run, load_run
from models.runs.results import DetourRow, DetourStep, TransferResult, Verdict
from models.runs.scores import LEVEL, as_dict, number, shown
from models.runs.seeds import difference_over_seeds
from pipeline.extract import extract
from pipeline.render.transfer_report import detour_lines

REPORTED = ("roc_auc", "balanced_accuracy")
DRAWS = 2000  # of the bootstrap


@dataclass(frozen=True)
class TransferOptions:
    """The domains on the way, and the one that it is all for."""

    source: str = option("pneumonia", "The data set on which the backbone is fine-tuned first.")
    target: str = option("cervical", "The data set that it is all for.")
    shared: str = option("", "A data set between the two, on which the backbone is fine-tuned second.")
    thaw: bool = option(False, "Fine-tune both backbones on the target too.")

    @property
    def passed(self) -> list[str]:
        """Return the domains on the way."""
        return [self.source, *([self.shared] if self.shared else [])]


Backbone = Annotated[FeatureOptions, Taking("seed", "backbone", "preprocess", "precision", "device")]
Heads = Annotated[HeadOptions, Taking("heads", heads="logistic lda knn")]
Protocol = Annotated[RunOptions, Taking(protocol="cv")]


def transfer(
    way: TransferOptions,
    features: Backbone,
    view: Heads,
    finetuning: FinetuneOptions,
    run: Protocol,
    spread: SeedOptions,
) -> list[str]:
    """Fine-tune a backbone on the source (then on `shared`); compare it, on the target, with the backbone as it came.

    Heads are trained on the target's features of both, in the same folds; with `thaw` both are fine-tuned on the
    target too. With several `seeds` heads are trained so often, and the detour helps or hurts only where its difference
    exceeds the spread over them too. Returns the report's lines, the last two with the paths of transfer.md and
    transfer.json. Raises FirnError for a target that is among the domains, BadDataset for images of the target that
    lie in one of them.
    """
    names, how = _of_features(view), _How(features, finetuning, features.data.seed, spread.seeds)
    backbone = features.backbone or "resnet18"
    places = (*way.passed, way.target)
    titles = _different([load_dataset(name, seed=how.seed).name for name in places])
    first = [how.view(name, backbone) for name in places]
    _check_apart(titles, first)
    steps = how.finetuned_on_all(way.passed, backbone)
    detour = steps[-1].backbone
    after = how.view(way.target, detour)[1]
    pairs = [(how.head(way.target, backbone, name, run), how.head(way.target, detour, name, run)) for name in names]
    if way.thaw:
        pairs.append((how.network(way.target, backbone, run), how.network(way.target, detour, run)))
    distances = [
        {"domain": title, **_told(_distances(domain, first[-1][1], after, how.seed))}
        for title, (_, domain) in zip(titles[:-1], first[:-1], strict=True)
    ]
    say(f"next: {make_command('compare', run, dataset=way.target, seed=how.seed or '')}")
    return _written(run, _result(titles, backbone, run, how.seed, steps, distances, pairs))


def _result(
    titles: Sequence[str],
    backbone: str,
    run: RunOptions,
    seed: int,
    steps: Sequence[DetourStep],
    distances: Sequence[Mapping[str, Any]],
    pairs: Sequence[tuple[Run, Run]],
) -> TransferResult:
    """Return the result of pairs of runs on the target (the last of `titles`), direct and by the detour."""
    direct = pairs[0][0]
    scored = shown(direct)
    return TransferResult(
        passed=titles[:-1],
        target=titles[-1],
        backbone=backbone,
        detour=steps[-1].backbone,
        labels=run.labels,
        protocol=run.protocol,
        folds=direct.record.folds,
        repeats=direct.record.repeats,
        seed=seed,
        n_bootstrap=DRAWS,
        level=LEVEL,
        images=len(np.unique(scored.ids)),
        groups=len(np.unique(scored.groups)),
        steps=steps,
        distances=distances,
        rows=_rows(pairs, seed),
    )


def _different(titles: list[str]) -> list[str]:
    """Return the names of the data sets; FirnError where one comes twice."""
    if len(set(titles)) < len(titles):
        raise FirnError(f"expected different data sets as SOURCE, SHARED and TARGET, got {', '.join(titles)}")
    return titles


def _of_features(view: HeadOptions) -> list[str]:
    """Return the heads that were asked for; FirnError for those that need more than pooled features."""
    fitting = [name for name in view.names if HEADS[name].input == "pooled"]
    if view.insist and len(fitting) < len(view.names):
        odd = next(name for name in view.names if name not in fitting)
        able = " ".join(fitting or [name for name, row in HEADS.items() if row.input == "pooled"])
        raise FirnError(f'{odd} needs more than pooled features; for transfer take HEADS="{able}"')
    return fitting


@dataclass(frozen=True)
class _How:
    """What every step has in common."""

    features: FeatureOptions
    finetuning: FinetuneOptions
    seed: int
    seeds: int

    def asked(self, dataset: str, backbone: str) -> FeatureOptions:
        """Return the options for one backbone on one data set."""
        return replaced(self.features, data=DatasetOptions(dataset, self.seed), backbone=backbone)

    def view(self, dataset: str, backbone: str) -> tuple[Cached, View]:
        """Return the entry and the average-pooled last block of a data set, extracted where missing."""
        stage = self.stage(dataset, backbone, RunOptions())
        return stage.entries[0], stage.view("logistic", "1", "avg")[1]

    def stage(self, dataset: str, backbone: str, run: RunOptions) -> Stage:
        """Return the features of a data set from a backbone, extracted where missing."""
        asked = self.asked(dataset, backbone)
        extract(asked, ExtractOptions())
        return Stage(open_features(asked.data.load(), asked), asked.data, run, device=asked.device)

    def finetuned_on(self, dataset: str, backbone: str) -> DetourStep:
        """Fine-tune a backbone on one domain; return the new backbone's name and how well it does there."""
        done, fit, test = finetuned_once(self.asked(dataset, backbone), self.finetuning, RunOptions())
        area = None
        if len(np.unique(test.y)) == fit.proba.shape[1]:
            drawn = score(test.y, fit.proba, test.groups, n_bootstrap=DRAWS, level=LEVEL, seed=self.seed)
            area = as_dict(drawn["roc_auc"])
        epochs = best_epoch(fit.history) + 1
        name = done.request.dataset.name
        return DetourStep(name, done.described, write_backbone(done), epochs, fit.seconds, area)

    def finetuned_on_all(self, passed: Sequence[str], backbone: str) -> list[DetourStep]:
        """Fine-tune a backbone on one domain, the result on the next, and so on."""
        steps: list[DetourStep] = []
        for name in passed:
            steps.append(self.finetuned_on(name, steps[-1].backbone if steps else backbone))
        return steps

    def head(self, dataset: str, backbone: str, name: str, run: RunOptions) -> Run:
        """Return the run of a head on the target."""
        folder = self.stage(dataset, backbone, run).train(name, seeds=self.seeds)
        assert folder is not None  # insisting raises instead
        return load_run(folder)

    def network(self, dataset: str, backbone: str, run: RunOptions) -> Run:
        """Return the run of a backbone that was fine-tuned on the target."""
        (done,) = finetuned(self.asked(dataset, backbone), self.finetuning, run, seeds=self.seeds)
        return load_run(done.folder())


def _check_apart(titles: Sequence[str], found: Sequence[tuple[Cached, View]]) -> None:
    """Raise BadDataset where bytes of a target's image lie in a domain too: its label would be known already."""
    *domains, target = [set(load_manifest(entry).sha256.tolist()) for entry, _ in found]
    for title, digests in zip(titles, domains, strict=False):
        if both := len(digests & target):
            raise BadDataset(
                f"{both} images of {titles[-1]} are in {title} too, so that a network fine-tuned there has seen their "
                f"labels; take them out of one of the two"
            )


def _distances(domain: View, target: View, after: View, seed: int) -> Distances:
    groups = (domain.groups, target.groups)
    return measure(domain.X[:], groups[0], target.X[:], groups[1], after=after.X[:], seed=seed)


def _told(found: Distances) -> dict[str, Any]:
    """Return distances ready for JSON."""
    plain = {name: number(getattr(found, name)) for name in ("frechet", "floor")}
    cka = None if found.cka is None else number(found.cka)
    sides = {"images": list(found.images), "groups": list(found.groups)}
    return {**plain, "directions": found.directions, "auc": as_dict(found.auc), "cka": cka, **sides}


def _rows(pairs: Sequence[tuple[Run, Run]], seed: int) -> list[DetourRow]:
    """Return for each head both ways with scores, and the test of their difference, simultaneous for all."""
    parts = [(shown(direct), shown(detour)) for direct, detour in pairs]
    rows = []
    for (direct, detour), test in zip(pairs, against_each_other(parts, seed=seed, n_bootstrap=DRAWS), strict=True):
        seeds = difference_over_seeds(direct.record, detour.record)
        ways = (_scored(direct, seed), _scored(detour, seed))
        rows.append(DetourRow(direct.record.head, direct.record.view, *ways, steady(test, seeds), seeds))
    return rows


def steady(test: Verdict, seeds: Mapping[str, float] | None) -> Verdict:
    """Return a verdict that says "within seeds" of a difference whose sign other seeds may turn round."""
    if seeds is None or test.verdict not in ("higher", "lower"):
        return test
    beyond = seeds["low"] > 0 if test.verdict == "higher" else seeds["high"] < 0
    return test if beyond else replace(test, verdict="within seeds")


def _scored(run: Run, seed: int) -> dict[str, Any]:
    part = shown(run)
    scores = score(part.y, part.proba, part.groups, folds=part.fold, n_bootstrap=DRAWS, level=LEVEL, seed=seed)
    return {"folder": str(run.folder), **{name: as_dict(scores[name]) for name in REPORTED}}


def _written(run: RunOptions, result: TransferResult) -> list[str]:
    """Write transfer.md and transfer.json; return the report and their paths."""
    way = "-".join([*result.passed, result.target, result.backbone])
    pairs = ((run.labels, "classes"), (run.protocol, "cv"), (f"{run.folds}-folds", "0-folds"))
    more = [value for value, usual in (*pairs, (f"{run.repeats}-repeats", "0-repeats")) if value != usual]
    folder = artifacts_root() / "transfer" / slug("-".join([way, *more]))
    lines = detour_lines(result)
    write_whole(folder / "transfer.md", ["\n".join(lines).encode() + b"\n"])
    write_whole(folder / "transfer.json", [json.dumps(result.to_json(), indent=1, allow_nan=False).encode()])
    return [*lines, "", str(folder / "transfer.md"), str(folder / "transfer.json")]
