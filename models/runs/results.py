"""What a comparison found: one RunResult per run, best validation first, in one ComparisonResult."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeAlias

from features.version import firn_version
from models.runs.record import RunRecord

Score: TypeAlias = Mapping[str, float | None]  # value, low, high; None for what the images cannot tell
Scores: TypeAlias = Mapping[str, Score]  # metric -> its score
SCHEMA = 3
UNDECIDED = "no detectable difference"  # the verdict of a test that the images leave open
_OF_DATA = ("dataset", "asked", "counts", "groups", "grouped_by", "split_by", "note", "manifest", "classes", "labels")


@dataclass(frozen=True)
class Verdict:
    """The paired test of a run against the chosen one, simultaneous with those of the others."""

    difference: Score  # run - chosen
    p_value: float | None
    p_adjusted: float | None
    distinguishable: bool
    verdict: str  # UNDECIDED, "higher", "lower", "cannot be tested", "within seeds" (transfer)
    claim: str = ""  # against a stated margin: equivalent within it, or not worse by more than it


@dataclass(frozen=True)
class RunResult:
    """All that can be said of one run."""

    name: str
    record: RunRecord
    images_per_second: float
    threshold: float | None  # Youden's, of out-of-fold predictions; None for more than two classes
    validation: Scores
    test: Scores | None  # None where there are no test images
    confusion: Sequence[Sequence[int]]  # images of each true class (rows) decided as each class (columns)
    thresholds: Mapping[str, Mapping[str, Any]]  # operating point -> threshold, sensitivity, specificity
    validation_rank: int = 0
    against_chosen: Verdict | None = None

    @property
    def shown(self) -> Scores:
        """Return the scores on test images, out of fold where there are none."""
        return self.test or self.validation

    @property
    def again(self) -> str:
        """Return in words how often each image counts in the confusion matrix; nothing where it is once."""
        repeats = 1 if self.test else self.record.repeats
        return f", each image in each of {repeats} repeats" if repeats > 1 else ""

    def to_json(self) -> dict[str, Any]:
        """Return the result ready for JSON: the record's fields beside the scores."""
        record = self.record.to_json()
        kept = {name: value for name, value in record.items() if name not in _OF_DATA}
        always = {"bases": list(self.record.bases), "finetuning": self.record.finetuning}
        scores = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("record", "against_chosen")}
        against = self.against_chosen and asdict(self.against_chosen)
        digests = [key.digest() for key in self.record.keys]
        return kept | always | scores | {"key_digests": digests, "against_chosen": against}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], data: Mapping[str, Any]) -> RunResult:
        """Return the result that `to_json` wrote, with the facts of the data that stand once beside all runs."""
        record = RunRecord.from_json({**content, **data, "images_per_second": None})
        if record is None:
            raise ValueError("a run without its record")
        against = content["against_chosen"] and Verdict(**content["against_chosen"])
        own = {f.name: content[f.name] for f in fields(cls) if f.name not in ("record", "against_chosen")}
        own["images_per_second"] = content["images_per_second"]
        return cls(record=record, against_chosen=against, **own)


@dataclass(frozen=True)
class Examination:
    """What is said of the chosen run alone, on test images or out of fold; see `models.runs.examination`."""

    asked: Mapping[str, str | bool]  # ExaminationOptions
    counts: Sequence[Mapping[str, Any]]  # of each class: images and groups, learned from and scored
    everyone: Mapping[str, Any]  # all images, as a row of the subgroups
    subgroups: Sequence[Mapping[str, Any]]  # of each column: rows, tests, images without a value
    passed_over: Sequence[str]  # columns that make no subgroups, and why
    by_group: Mapping[str, Any] | None  # scores by patient; None where each has one image
    prevalence: Mapping[str, Any]  # class shares trained, scored, estimated, stated; what holds at the stated one
    rates: Sequence[Mapping[str, Any]]  # sensitivity at a specificity, the reverse, partial area; none for more classes
    remarks: Sequence[str]


@dataclass(frozen=True)
class ComparisonResult:
    """What `results.json` holds."""

    runs: tuple[RunResult, ...]  # best validation first; the first is the chosen one
    images: Mapping[str, int]  # validation, test
    classes: Sequence[Mapping[str, Any]]  # of the chosen run: each class against the rest; empty for two
    corrected: Score | None  # the chosen run's score corrected for the choice, without test images
    calibration: Mapping[str, Scores]
    examination: Examination
    settings: Mapping[str, Any]  # choice, level, alpha, seed, n_bootstrap
    metrics: Mapping[str, Mapping[str, Any]]
    commands: Sequence[str] = ()
    summary: str = ""
    protocol: Sequence[str] = ()
    firn: str = ""

    @property
    def chosen(self) -> RunResult:
        """Return the run that validation chose."""
        return self.runs[0]

    @property
    def dataset(self) -> RunRecord:
        """Return a record for what all runs have in common: data, labels, classes, protocol."""
        return self.chosen.record

    @property
    def tested(self) -> bool:
        """Return whether there are test images."""
        return self.chosen.test is not None

    def to_json(self) -> dict[str, Any]:
        """Return the results ready for JSON; what all runs have in common stands once."""
        data = self.dataset
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("runs", "images")}
        own["examination"] = asdict(self.examination)
        common = {name: getattr(data, name) for name in (*_OF_DATA, "protocol")}
        common |= {"name": data.dataset, "positive": data.positive, "images": self.images}
        return {
            **own,
            "schema": SCHEMA,
            "dataset": common,
            "chosen": self.chosen.name,
            "runs": [run.to_json() for run in self.runs],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ComparisonResult:
        """Return the results that `to_json` wrote. Raises KeyError, TypeError, ValueError for another form."""
        data = {name: content["dataset"][name] for name in (*_OF_DATA, "protocol")}
        runs = tuple(RunResult.from_json(row, data) for row in content["runs"])
        own = {f.name: content[f.name] for f in fields(cls) if f.name not in ("runs", "images")}
        own["examination"] = Examination(**own["examination"])
        return cls(runs=runs, images=content["dataset"]["images"], **own)


def ranked(rows: Sequence[RunResult], verdicts: Sequence[Verdict | None]) -> tuple[RunResult, ...]:
    """Return results in their order, each with its rank and its verdict."""
    pairs = zip(rows, verdicts, strict=True)
    return tuple(replace(row, validation_rank=i, against_chosen=v) for i, (row, v) in enumerate(pairs, start=1))


def stamped(result: ComparisonResult, **words: Any) -> ComparisonResult:
    """Return results with their words, and the version that made them."""
    return replace(result, firn=firn_version(), **words)


@dataclass(frozen=True)
class DetourStep:
    """A backbone fine-tuned on one domain of a transfer."""

    dataset: str
    blocks: str
    backbone: str  # the new backbone's name
    epochs: int  # up to the best one
    seconds: float
    roc_auc: Score | None  # on the domain's test images, where there are some of every class


@dataclass(frozen=True)
class DetourRow:
    """A head on the target, trained on the features of the backbone as it came and on those of the detour."""

    head: str
    view: str
    direct: Mapping[str, Any]
    detour: Mapping[str, Any]
    test: Verdict  # of the difference detour - direct
    over_seeds: Mapping[str, float] | None = None  # the mean difference over seeds: `models.runs.seeds`


@dataclass(frozen=True)
class TransferResult:
    """What `transfer.json` holds."""

    passed: Sequence[str]  # the domains on the way
    target: str
    backbone: str
    detour: str  # the backbone that came out
    labels: str
    protocol: str
    folds: int
    repeats: int
    seed: int
    n_bootstrap: int
    level: float
    images: int
    groups: int
    steps: Sequence[DetourStep]
    distances: Sequence[Mapping[str, Any]]
    rows: Sequence[DetourRow]

    def to_json(self) -> dict[str, Any]:
        """Return the result ready for JSON."""
        rows = [{**row, **row.pop("test")} for row in asdict(self)["rows"]]
        return {"schema": SCHEMA, **asdict(self), "rows": rows}
